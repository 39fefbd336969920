"""Dropout's masks: numbers from a counter, so that no order of work changes them.

The mask of a unit and a sample is a hash of (seed, step, layer, unit, sample), not the next number of a generator. Any
number of threads, in any order, on any backend, draws the same mask. The hashes are splitmix64 (Steele, Lea and Flood,
"Fast splittable pseudorandom number generators", OOPSLA 2014) for keys, and a 32-bit mixing function with two
multiplications per element.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusedmlp.checks import check_number
from fusedmlp.model.activations import Array

_64 = (1 << 64) - 1
_32 = (1 << 32) - 1


@dataclass(frozen=True)
class Dropout:
    """Which share of the inputs of each layer is dropped in training.

    Attributes
    ----------
    rates : tuple of float in [0, 1)
        The probability that a number is dropped: of A_0 = X, A_1, ..., of the last hidden layer.
    seed : int
        64 bits.
    """

    rates: tuple[float, ...]
    seed: int

    def threshold(self, layer: int) -> int:
        """A hash below this drops its number: rate · 2³²."""
        return min(_32, round(self.rates[layer] * 2**32))

    def scale(self, layer: int) -> float:
        """1 / (1 - rate): kept numbers are multiplied by it, so that their expectation stays."""
        return 1.0 / (1.0 - self.rates[layer])

    def step_key(self, step: int) -> int:
        """64 bits that stand for the seed and a step (the number of steps taken before it)."""
        return splitmix64(self.seed ^ splitmix64(step))


def splitmix64(x: int) -> int:
    """A 64-bit hash of a 64-bit number."""
    x = (x + 0x9E3779B97F4A7C15) & _64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & _64
    x = (x ^ x >> 27) * 0x94D049BB133111EB & _64
    return x ^ x >> 31


def unit_key(step_key: int, layer: int, unit: int) -> int:
    """32 bits that stand for a unit of a layer (0: the inputs) in a step."""
    return splitmix64((step_key + (layer << 40) + unit + 1) & _64) & _32


def factors(xp: Any, dropout: Dropout, layer: int, units: int, samples: Array, step: int, dtype: Any) -> Array:
    """The factors of A_layer: 0 where a number is dropped, else 1 / (1 - rate).

    Parameters
    ----------
    xp : module
        numpy or cupy.
    dropout : Dropout
    layer : int
        0: the inputs X.
    units : int
    samples : array of int of shape (k,)
        The column of each sample in the training's X.
    step : int
        Steps taken before this one.
    dtype : dtype

    Returns
    -------
    array of shape (units, k)
    """
    keep = keep_mask(xp, dropout, layer, units, samples, step)
    return keep.astype(dtype) * np.dtype(dtype).type(dropout.scale(layer))


def keep_mask(xp: Any, dropout: Dropout, layer: int, units: int, samples: Array, step: int) -> Array:
    """Which numbers are kept, shape (units, k), bool; arguments as of `factors`."""
    key = dropout.step_key(step)
    i = xp.asarray(samples).astype(xp.uint64)
    low, high = (i & xp.uint64(_32)).astype(xp.uint32), (i >> xp.uint64(32)).astype(xp.uint32)
    samples_hash = _mix32(xp, low ^ xp.uint32(key & _32)) ^ _mix32(xp, high + xp.uint32(key >> 32))
    keys = xp.asarray(np.array([unit_key(key, layer, unit) for unit in range(units)], np.uint32))
    hashes = _mix32(xp, samples_hash[None, :] ^ keys[:, None])
    return hashes >= xp.uint32(dropout.threshold(layer))


def _mix32(xp: Any, h: Array) -> Array:
    """A bijection of 32 bits that changes half of them, on average, for every changed bit of its argument."""
    h = h ^ (h >> xp.uint32(16))
    h = h * xp.uint32(0x7FEB352D)
    h = h ^ (h >> xp.uint32(15))
    h = h * xp.uint32(0x846CA68B)
    return h ^ (h >> xp.uint32(16))


def as_rates(dropout: float | Sequence[float], layers: int) -> tuple[float, ...] | None:
    """The rate of each layer's inputs, or None where all are 0.

    Parameters
    ----------
    dropout : float or sequence of float in [0, 1)
        A number is the rate of every hidden layer; the inputs are not dropped. A sequence has a rate for the inputs,
        and one for each hidden layer.
    layers : int
        Weight layers: one more than hidden layers.

    Raises
    ------
    ValueError
        A rate is not in [0, 1), or there are not as many as layers.
    """
    if isinstance(dropout, list | tuple | np.ndarray):
        rates = tuple(check_number(f"dropout[{i}]", rate, 0, 1, include_low=True) for i, rate in enumerate(dropout))
        if len(rates) != layers:
            raise ValueError(
                f"dropout: expected a number, or {layers} of them (inputs, then each hidden layer); got {len(rates)}"
            )
    else:
        rate = check_number("dropout", dropout, 0, 1, include_low=True)
        rates = (0.0, *[rate] * (layers - 1))
    return rates if any(rates) else None
