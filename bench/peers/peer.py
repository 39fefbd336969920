"""What a library has to offer to be measured."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, ClassVar, NamedTuple

import numpy as np

from bench.peers import exact
from bench.peers.cases import Problem

TASKS = ("step", "epoch", "forward")


class Bound(NamedTuple):
    """A task with its numbers where the library wants them.

    Attributes
    ----------
    call : callable
        What is timed; it returns when the work is done. An epoch goes on from where the one before it ended.
    result : callable
        The latest call's result, named as in `exact.expected`.
    """

    call: Callable[[], Any]
    result: Callable[[], dict[str, np.ndarray]]


class Peer(ABC):
    """A library, in a process of its own.

    Parameters
    ----------
    threads : int
        How many it may use. Importing the library is the constructor's work: nothing before it may.
    """

    name: ClassVar[str]
    module: ClassVar[str]
    """What has to be importable."""
    tasks: ClassVar[tuple[str, ...]] = TASKS
    ours: ClassVar[bool] = False
    distributions: ClassVar[tuple[str, ...]]
    """Whose versions are reported."""

    @abstractmethod
    def __init__(self, threads: int) -> None: ...

    @abstractmethod
    def bind(self, problem: Problem) -> Bound:
        """Copy the numbers to where the library wants them. Compilation may wait for the first call."""

    def versions(self) -> str:
        return ", ".join(f"{name} {version(name)}" for name in self.distributions)


class Latest:
    """Calls a function and keeps what it returned."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function, self.value = function, None

    def __call__(self) -> None:
        self.value = self.function()


def named_step(problem: Problem, J: Any, gradients: Any) -> dict[str, np.ndarray]:
    """A step's result from J and the gradients of W1, b1, ..."""
    named = zip(exact.names(problem.case), gradients, strict=True)
    return {"J": np.asarray(J), **{f"d{name}": np.asarray(gradient) for name, gradient in named}}


def named_epoch(problem: Problem, J: Any, layers: Any) -> dict[str, np.ndarray]:
    """An epoch's result from J and W1, b1, ... after it."""
    return {"J": np.asarray(J), "change": exact.change(problem, [np.asarray(x) for x in layers])}
