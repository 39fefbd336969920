"""The operands, drawn once per shape: the backends that follow each other at a shape get the same numbers."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from bench.grid import Shape
from fusedmlp import Architecture, Parameters
from fusedmlp.model.parameters import glorot_uniform


class Samples(NamedTuple):
    """X (n1, m) and Y (n3, m)."""

    X: np.ndarray
    Y: np.ndarray


@lru_cache(maxsize=1)
def samples(shape: Shape) -> Samples:
    """Normal inputs, a row of memory per sample; Y is 0 or 1 at random."""
    generator = np.random.default_rng(0)
    X = generator.standard_normal((shape.m, shape.n1), dtype=shape.dtype).T
    Y = generator.integers(0, 2, (shape.n3, shape.m)).astype(shape.dtype)
    return Samples(X, Y)


def architecture(shape: Shape) -> Architecture:
    """The network n1-n2-n3."""
    return Architecture([shape.n1, shape.n2, shape.n3], dtype=shape.dtype)


@lru_cache(maxsize=1)
def parameters(shape: Shape) -> Parameters:
    """Fresh weights and biases; not to be written to."""
    drawn = Parameters(architecture(shape), glorot_uniform(architecture(shape), np.random.default_rng(1)))
    drawn.flat.flags.writeable = False
    return drawn


@lru_cache(maxsize=1)
def logits(shape: Shape) -> np.ndarray:
    """Z1 (n2, m): normal, with a standard deviation of 2."""
    Z = np.random.default_rng(2).standard_normal((shape.n2, shape.m), dtype=shape.dtype)
    Z *= Z.dtype.type(2)
    return Z


@lru_cache(maxsize=1)
def backward(shape: Shape) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """W2 (n2, n3) and dZ2 (n3, m), normal, and A1 (n2, m), uniform in [0, 1)."""
    generator = np.random.default_rng(3)
    W2 = generator.standard_normal((shape.n2, shape.n3), dtype=shape.dtype)
    dZ2 = generator.standard_normal((shape.n3, shape.m), dtype=shape.dtype)
    return W2, dZ2, generator.random((shape.n2, shape.m), dtype=shape.dtype)


def checked_samples(m: int, most: int = 2048) -> np.ndarray:
    """Columns to check: all of a few, else both ends and evenly spaced ones between them."""
    if m <= most:
        return np.arange(m)
    end = most // 4
    between = np.linspace(end, m - end - 1, most - 2 * end).astype(int)
    return np.concatenate([np.arange(end), between, np.arange(m - end, m)])
