"""What is measured on a GPU: shapes, precisions, the targets, and the numbers, which are made on the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from bench.peers.cases import Case, Problem
from fusedmlp.model.parameters import glorot_uniform

PRECISIONS = ("strict", "tf32")
"""Of products of float32 numbers: in float32, or with TF32 allowed."""


@dataclass(frozen=True)
class GpuCase(Case):
    """A case with a precision.

    Parameters
    ----------
    precision : {"strict", "tf32"}
    """

    precision: str = "strict"

    @property
    def hidden_bytes(self) -> int:
        """H: the activations of all hidden layers, once."""
        return 4 * self.hidden_values

    @property
    def sample_bytes(self) -> int:
        """X and Y, once."""
        return 4 * self.m * (self.layer_sizes[0] + self.layer_sizes[-1])

    def __str__(self) -> str:
        return super().__str__() + (", TF32" if self.precision == "tf32" else "")


class Group(NamedTuple):
    """Cases of one shape: they share their numbers.

    Attributes
    ----------
    cases : tuple of GpuCase
    target : float
        How many times as fast as `against` the fused engine is meant to be.
    against : str
        A library, or "best peer".
    """

    cases: tuple[GpuCase, ...]
    target: float
    against: str = "best peer"


def _steps(layer_sizes: tuple[int, ...], m: int) -> tuple[GpuCase, ...]:
    return tuple(GpuCase("step", layer_sizes, m, precision=precision) for precision in PRECISIONS)


def _epochs(layer_sizes: tuple[int, ...], m: int, *batch_sizes: int) -> tuple[GpuCase, ...]:
    return tuple(GpuCase("epoch", layer_sizes, m, batch_size=batch_size) for batch_size in batch_sizes)


GROUPS = {
    "30-64": Group(_epochs((30, 64, 1), 569, 32, 569), 5.0, "torch"),
    "784-1024": Group(_steps((784, 1024, 1), 65_536), 1.3),
    "64-1024": Group(_steps((64, 1024, 1), 2**20), 2.5),
    "16-256": Group(_steps((16, 256, 1), 2**24), 4.0),
}
"""By name; those that need the most memory are last, because not every library gives it back."""
QUICK = ("30-64", "784-1024", "64-1024")

ELEMENTS_AT_ONCE = 2**24
"""Of X while it is made: what that takes beside X stays small."""


def draw(case: Case, xp: Any) -> Problem:
    """The numbers of a case in arrays of `xp`, bit for bit the same in every process.

    X is uniform with mean 0 and variance 1, from a hash of each element's place; labels follow a linear rule in up to
    eight inputs, with noise, so that gradients do not cancel. `flat` and `order` are numpy arrays.
    """
    n1, m = case.layer_sizes[0], case.m
    X, Y = xp.empty((m, n1), np.float32), xp.empty((m, case.layer_sizes[-1]), np.float32)
    rng = np.random.default_rng(2)
    used = min(n1, 8)
    rules = (rng.choice((-1.0, 1.0), (Y.shape[1], used)) * rng.uniform(0.5, 1.5, (Y.shape[1], used))).astype(np.float32)
    rows = max(1, ELEMENTS_AT_ONCE // n1)
    for start in range(0, m, rows):
        stop = min(m, start + rows)
        x = _uniform(xp, start * n1, stop * n1, 1).reshape(stop - start, n1)
        X[start:stop] = x
        for output, rule in enumerate(rules):
            score = _uniform(xp, start, stop, 3 + output)
            for feature in range(used):
                score = score + x[:, feature] * rule[feature]
            Y[start:stop, output] = score > np.float32(0.3)
    flat = glorot_uniform(case.architecture, np.random.default_rng(1))
    return Problem(case, X, Y, flat, np.random.default_rng(5).permutation(m) if case.task == "epoch" else np.empty(0))


def _uniform(xp: Any, start: int, stop: int, seed: int) -> Any:
    """Numbers of variance 1 on (-√3, √3), float32, from a hash (Chris Wellons's "lowbias32") of start ... stop - 1."""
    h = xp.arange(start, stop, dtype=np.uint32) + np.uint32(seed * 0x9E3779B9 % 2**32)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        h ^= h >> np.uint32(shift)
        h *= np.uint32(factor)
    h ^= h >> np.uint32(16)
    unit = (h >> np.uint32(8)).astype(np.float32) * np.float32(2**-24)
    return (unit - np.float32(0.5)) * np.float32(12**0.5)
