"""The interface that a library is measured through."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any, ClassVar, NamedTuple

import numpy as np

from bench.exact import to_host
from bench.peers.cases import Case
from bench.peers.device import Device
from bench.peers.problem import Problem


class NotHereError(RuntimeError):
    """A library cannot do a case on this machine: it is left out, with the reason."""


class Bound(NamedTuple):
    """A task with its numbers where the library wants them.

    Attributes
    ----------
    call : callable
        The work that is timed. On a CPU it returns when the work is done. An epoch continues from the one before it.
    result : callable
        The latest call's result, named as by `check.expected`.
    """

    call: Callable[[], Any]
    result: Callable[[], dict[str, np.ndarray]]


class Peer(ABC):
    """A library in a process of its own, which imports the library in the constructor.

    Parameters
    ----------
    device : Device
    threads : int
        How many it may use on a CPU.
    """

    distributions: ClassVar[tuple[str, ...]] = ()
    """The packages whose versions are reported."""

    def __init__(self, device: Device, threads: int) -> None:
        self.device = device

    @abstractmethod
    def bind(self, problem: Problem) -> Bound:
        """Copy the numbers to where the library wants them. Compilation may wait for the first call.

        Raises
        ------
        NotHereError
        """

    def seconds(self, bound: Bound, calls: int) -> float:
        """The time of so many calls in a row."""
        return self.device.seconds(lambda: repeat(bound, calls))

    def memory(self) -> int | None:
        """As `Device.memory`."""
        return self.device.memory()

    def peak(self) -> int | None:
        """As `Device.peak`."""
        return self.device.peak()

    def forget_peak(self) -> None:
        """As `Device.forget_peak`."""
        self.device.forget_peak()

    def engine(self) -> str:
        """The name of what ran in the latest case, where the library has one."""
        return ""

    def versions(self) -> str:
        """Such as "jax 0.10.2, jaxlib 0.10.2"; a package that is not installed is left out."""
        found = []
        for name in self.distributions:
            try:
                found.append(f"{name} {version(name)}")
            except PackageNotFoundError:
                continue
        return ", ".join(found)


class Latest:
    """Calls a function and keeps the returned value."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function, self.value = function, None

    def __call__(self) -> None:
        self.value = self.function()


def repeat(bound: Bound, calls: int) -> None:
    """Call the bound work so many times."""
    for _ in range(calls):
        bound.call()


def names(case: Case) -> list[str]:
    """W1, b1, W2, b2, ..."""
    return [f"{kind}{layer + 1}" for layer in range(len(case.layer_sizes) - 1) for kind in "Wb"]


def named_step(case: Case, J: Any, gradients: Any) -> dict[str, np.ndarray]:
    """A step's result: J and the gradients of W1, b1, ..., with biases of shape (n,)."""
    named = {f"d{name}": to_host(gradient) for name, gradient in zip(names(case), gradients, strict=True)}
    return {"J": to_host(J), **{name: g.reshape(-1) if name[1] == "b" else g for name, g in named.items()}}


def named_epoch(problem: Problem, J: Any, layers: Any) -> dict[str, np.ndarray]:
    """An epoch's result: J, and the change of all parameters as one vector of float64."""
    after = np.concatenate([np.ravel(to_host(x)) for x in layers]).astype(np.float64)
    return {"J": to_host(J), "change": after - problem.flat}
