"""Plain float64 numerics for the tests of the two notes. Nothing here uses fusedmlp."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

STEP = 1e-5
"""h of a central difference: its error is of order h² from the formula and 1e-16 / h from rounding."""


class ShapeMismatchError(Exception):
    """A formula asks for elements or products that do not exist."""


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def sigmoid_slope(z: float) -> float:
    """σ'(z), from its definition as a quotient rather than as a(1 - a)."""
    return math.exp(-z) / (1 + math.exp(-z)) ** 2


def product(*factors: np.ndarray) -> np.ndarray:
    """The matrix product, from left to right; every factor is a matrix, and nothing is broadcast."""
    result = factors[0]
    for factor in factors[1:]:
        if result.ndim != 2 or factor.ndim != 2 or result.shape[1] != factor.shape[0]:
            raise ShapeMismatchError(f"matrix product of {result.shape} and {factor.shape}")
        result = np.einsum("ij,jk->ik", result, factor)
    return result


def hadamard(*factors: np.ndarray) -> np.ndarray:
    """The element-wise product ⊙ of arrays of one shape; nothing is broadcast."""
    if len({factor.shape for factor in factors}) != 1:
        raise ShapeMismatchError(f"element-wise product of {[factor.shape for factor in factors]}")
    return math.prod(factors[1:], start=factors[0])


def derivative(f: Callable[[float], Any]) -> Any:
    """df/dh at h = 0, by a central difference; f may return an array."""
    return (np.asarray(f(STEP)) - np.asarray(f(-STEP))) / (2 * STEP)


def jacobian(f: Callable[[np.ndarray], Any], x: np.ndarray) -> np.ndarray:
    """∂f/∂x by central differences, of shape f.shape + x.shape."""
    columns = []
    for index in np.ndindex(x.shape):
        unit = np.zeros_like(x)
        unit[index] = 1.0
        columns.append(derivative(lambda h, unit=unit: f(x + h * unit)))
    stacked = np.stack(columns, axis=-1)
    return stacked.reshape(stacked.shape[:-1] + x.shape)


def relative_error(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference of two arrays of one shape, relative to the largest element."""
    scale = max(float(np.abs(a).max()), float(np.abs(b).max()))
    return float(np.abs(a - b).max()) / scale if scale else 0.0


def assert_all_equal(*values: Any) -> None:
    """Numbers or arrays of one shape, equal up to what a central difference can tell."""
    arrays = [np.asarray(value, dtype=float) for value in values]
    assert len(arrays) >= 2
    for array in arrays[1:]:
        assert array.shape == arrays[0].shape
        np.testing.assert_allclose(array, arrays[0], rtol=1e-6, atol=1e-9)


class Formulas(dict[str, Callable[..., Iterable[tuple[Any, ...]]]]):
    """The formulas of a test module by their id in docs/derivation.md.

    Each is a function of the network under test that gives tuples of values which the formula says are equal.
    """

    def __call__(self, *ids: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def register(function: Callable[..., Any]) -> Callable[..., Any]:
            for name in ids:
                assert name not in self, f"{name} is registered twice"
                self[name] = function
            return function

        return register

    def check(self, name: str, *network: Any) -> None:
        equations = list(self[name](*network))
        assert equations
        for values in equations:
            assert_all_equal(*values)
