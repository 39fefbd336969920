"""What a mistake in a note is, for the tests: the formula as printed, the corrected one, and the truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from notes_math import ShapeMismatchError, relative_error

Value = Callable[[], np.ndarray | float]


@dataclass(frozen=True)
class Mistake:
    """A mistake by its id in docs/derivation.md, on one network.

    Attributes
    ----------
    id, formula : str
        "M1.6", and the formula that it is in, "N1.21". An id may come back with another network, where the sizes of
        layers decide how it fails.
    truth : callable
        The quantity itself: a central difference, or what the network computes.
    printed : tuple of callables
        Every sensible reading of the formula as printed. Where a line has several mistakes, the others are corrected,
        so that each is seen to matter on its own; one of the readings is then the line as a whole.
    corrected : callable
    """

    id: str
    formula: str
    truth: Value
    printed: tuple[Value, ...]
    corrected: Value

    def failures(self) -> list[str]:
        """How each reading of the printed formula fails: "shape", "value", or "" where it does not."""
        return [failure(reading, self.truth) for reading in self.printed]


def failure(formula: Value, truth: Value) -> str:
    """ "shape" where a formula cannot be evaluated or has another shape than the truth, "value" where it is off by more
    than a thousandth, "" where it agrees to a millionth."""
    expected = np.asarray(truth(), dtype=float)
    try:
        value = np.asarray(formula(), dtype=float)
    except ShapeMismatchError:
        return "shape"
    if value.shape != expected.shape:
        return "shape"
    error = relative_error(value, expected)
    assert error < 1e-6 or error > 1e-3, f"neither right nor clearly wrong: relative error {error:.1e}"
    return "value" if error > 1e-3 else ""
