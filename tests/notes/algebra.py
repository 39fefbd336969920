"""The parts of formulas: indices, symbols, products that check shapes, sums over indices, derivatives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

STEP = 1e-30
"""The imaginary step of a derivative. It is exact to rounding: nothing is subtracted."""

Node = Callable[["Scope"], Any]
"""A part of a formula: what evaluates it in a scope."""


class ShapeMismatchError(Exception):
    """A formula asks for a product, a sum or an element that does not exist."""


class UnboundIndexError(Exception):
    """An index has no value yet; it could have low to high."""

    def __init__(self, name: str, low: int, high: int, size: int | None) -> None:
        super().__init__(f"index {name}, {low} to {high}")
        self.name, self.values, self.size = name, range(low, high + 1), size


@dataclass(frozen=True)
class Scope:
    """What a formula is evaluated in: the symbols of a network, and the values of indices."""

    network: Any
    indices: dict[str, tuple[int, int | None]] = field(default_factory=dict)
    apart: tuple[tuple[str, str], ...] = ()

    def bind(self, name: str, value: int, size: int | None) -> Scope:
        return replace(self, indices=self.indices | {name: (value, size)})

    def allowed(self) -> bool:
        """Whether the indices that have to differ do."""
        known = self.indices
        return not any(a in known and b in known and known[a][0] == known[b][0] for a, b in self.apart)

    def place(self, index: Index, low: int, high: int, axis: bool) -> int:
        """The value of an index, which must lie in low to high; along an `axis` it must run over all of it."""
        size = high - low + 1 if axis else None
        value = index.value(self)
        if value is None:
            raise UnboundIndexError(index.name, low - index.offset, high - index.offset, size)
        bound = self.indices.get(index.name, (0, None))[1]
        if not low <= value <= high or (axis and bound not in (None, size)):
            raise ShapeMismatchError(f"index {index.name or value} on an axis of {low} to {high}")
        return value


@dataclass(frozen=True)
class Index:
    """An index: a letter or a size (m, L, n_2), plus an offset; or a number."""

    name: str
    offset: int

    def value(self, scope: Scope) -> int | None:
        if not self.name:
            return self.offset
        known = scope.indices.get(self.name, (scope.network.sizes.get(self.name), None))[0]
        return None if known is None else known + self.offset


def single(token: str) -> Index:
    """An index of one token."""
    return Index("", int(token)) if token.isdigit() else Index(token, 0)


def number(value: Any) -> np.ndarray:
    """An array, or a number without axes for a single element."""
    value = np.asarray(value)
    return value.reshape(()) if value.size == 1 else value


def add(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if a.ndim and b.ndim and a.shape != b.shape and not (b.ndim == 2 and b.shape == (a.shape[0], 1)):
        raise ShapeMismatchError(f"{a.shape} + {b.shape}")
    return a + b


def multiply(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if not a.ndim or not b.ndim:
        return a * b
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
        raise ShapeMismatchError(f"{a.shape} times {b.shape}")
    return number(a @ b)


def hadamard(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if a.shape != b.shape:
        raise ShapeMismatchError(f"{a.shape} ⊙ {b.shape}")
    return a * b


def divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if b.ndim:
        raise ShapeMismatchError(f"{a.shape} divided by {b.shape}")
    return a / b


@dataclass(frozen=True)
class Symbol:
    """A symbol with its subscripts, the superscripts that the notes number layers and samples with, and its element."""

    name: str
    subscripts: tuple[Index | str, ...] = ()
    superscript: Index | None = None
    element: tuple[Index | str, ...] = ()

    def find(self, scope: Scope) -> tuple[tuple[str, int | None], np.ndarray, Any]:
        """The quantity, its array, and the part of it that is meant."""
        symbol: Symbol = scope.network.in_our_notation(self)
        low, high, axis = scope.network.numbering(symbol.name, bool(symbol.subscripts))
        which = scope.place(symbol.subscripts[0], low, high, axis) if symbol.subscripts else None
        array = np.asarray(scope.network.value(symbol.name, which))
        if symbol.element and len(symbol.element) != array.ndim and not (array.ndim == 2 and array.shape[1] == 1):
            raise ShapeMismatchError(f"{len(symbol.element)} indices of a {array.shape}")
        part = []
        for index, length in zip(symbol.element, array.shape, strict=False):
            at = slice(None) if index == ":" else scope.place(index, 1, length, True) - 1
            part.append(at if index == ":" else slice(at, at + 1))
        return (symbol.name, which), array, tuple(part)

    def __call__(self, scope: Scope) -> np.ndarray:
        if self.name == "t":  # the number of a step, as a power of a constant
            return np.asarray(float(scope.indices[self.name][0]))
        _, array, part = self.find(scope)
        return number(array[part])


def differentiate(above: Node, below: Symbol, scope: Scope) -> np.ndarray:
    """∂above/∂below, of the shape of both together."""
    name, array, part = below.find(scope)
    wanted = np.zeros(array.shape, bool)
    wanted[part] = True
    slopes = []
    for where in np.argwhere(wanted):
        step = np.zeros(array.shape, complex)
        step[tuple(where)] = 1j * STEP
        slopes.append(np.imag(above(replace(scope, network=scope.network.changed(name, step)))) / STEP)
    stacked = np.stack(slopes, axis=-1)
    return number(stacked.reshape(stacked.shape[:-1] + number(array[part]).shape))


def total(body: Node, name: str, bounds: list[Index] | None, scope: Scope) -> np.ndarray:
    r"""\sum over an index: between its bounds, or over all values that its position allows."""
    outside = replace(scope, indices={key: value for key, value in scope.indices.items() if key != name})
    low, values, size = 0, None, None
    if bounds:
        low, high = (bound.value(outside) for bound in bounds)
        values = range(low, high + 1)
    else:
        try:
            body(outside)
        except UnboundIndexError as free:
            if free.name != name:
                raise
            values, size = free.values, free.size
    if values is None:
        raise ShapeMismatchError(f"a sum over {name}, which nothing depends on")
    return number(sum(body(outside.bind(name, value, size)) for value in values))
