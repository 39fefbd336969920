"""The one helper that compares arrays, with the one table of tolerances."""

from __future__ import annotations

import numpy as np

# Relative to the largest element of what is expected: sums over samples and layers share its rounding errors.
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}
# Single operations, element by element: rounding alone.
ELEMENTWISE = {"float32": 8 * 2.0**-23, "float64": 16 * 2.0**-52}


def assert_close(actual, expected, what="result", *, tolerance=None, elementwise=False):
    """Compare values, dtype, shape and finiteness.

    Parameters
    ----------
    actual : array
        What is under test, float32 or float64.
    expected : array
        The same in float64.
    tolerance : float, optional
        In place of the table's: of max |expected| (elementwise: of every |expected|).
    """
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.dtype.name in TOLERANCE, f"{what}: dtype {actual.dtype}"
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, expected {expected.shape}"
    assert np.isfinite(expected).all(), f"{what}: the expected values are not finite"
    assert np.isfinite(actual).all(), f"{what}: {np.count_nonzero(~np.isfinite(actual))} elements are not finite"
    if not expected.size:
        return
    tolerance = tolerance or (ELEMENTWISE if elementwise else TOLERANCE)[actual.dtype.name]
    tiny = float(np.finfo(actual.dtype).tiny)
    scale = np.abs(expected) if elementwise else np.max(np.abs(expected))
    error = np.abs(actual.astype(np.float64) - expected)
    allowed = np.broadcast_to(tolerance * scale + tiny, error.shape)
    worst = np.unravel_index(np.argmax(error - allowed), error.shape)
    assert (error <= allowed).all(), (
        f"{what}: at {tuple(map(int, worst))} got {actual[worst]!r}, expected {expected[worst]!r}; "
        f"off by {error[worst]:.3g}, allowed {allowed[worst]:.3g}"
    )
