"""Every backend's primitives against numpy in float64: activations, dtypes, memory orders, strides, out=, sizes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compare import assert_close
from fusedmlp.model.activations import HIDDEN_ACTIVATIONS
from oracle import ACTIVATIONS, SELU_ALPHA, SELU_SCALE

DTYPES = ("float32", "float64")
ORDERS = ("C", "F", "strided", "reversed", "read-only")
SIZES = st.sampled_from([1, 2, 3, 7, 13, 31, 64, 127, 257])


def arrange(backend, x, order):
    """x as an array of the backend.

    "strided" is every second row and third column of a larger one, "reversed" has negative strides.
    """
    if order == "reversed":
        return backend.asarray(np.ascontiguousarray(x[::-1, ::-1]))[::-1, ::-1]
    if order == "read-only":
        array = backend.asarray(x.copy())
        if isinstance(array, np.ndarray):
            array.flags.writeable = False
        return array
    if order != "strided":
        return backend.asarray(np.asarray(x, order=order))
    larger = np.full((2 * x.shape[0], 3 * x.shape[1]), np.nan, x.dtype)
    larger[::2, ::3] = x
    return backend.asarray(larger)[::2, ::3]


def empty(backend, shape, dtype, order):
    """An array of NaN to write a result into."""
    order = "C" if order == "read-only" else order
    return arrange(backend, np.full(shape, np.nan, dtype), order)


def derivative(activation, A):
    """f' in terms of A, in float64; A itself is f' where an activation stores its slope."""
    if HIDDEN_ACTIVATIONS[activation].stores_slope:
        return A
    negative = A <= 0
    return {
        "sigmoid": A * (1 - A),
        "tanh": 1 - A * A,
        "relu": 1.0 - negative,
        "identity": np.ones_like(A),
        "leaky_relu": np.where(negative, 0.01, 1.0),
        "elu": np.where(negative, A + 1, 1.0),
        "softsign": (1 - np.abs(A)) ** 2,
        "selu": SELU_SCALE * np.where(negative, A / SELU_SCALE + SELU_ALPHA, 1.0),
    }[activation]


@given(n=SIZES, k=SIZES, m=SIZES, dtype=st.sampled_from(DTYPES), orders=st.tuples(*[st.sampled_from(ORDERS)] * 3))
def test_matmul(backend, n, k, m, dtype, orders):
    rng = np.random.default_rng([n, k, m])
    a, b = rng.normal(size=(n, k)).astype(dtype), rng.normal(size=(k, m)).astype(dtype)
    # Relative to the sum of absolute products: cancellation is not the kernel's fault.
    bound = (np.abs(a).astype(float) @ np.abs(b).astype(float)).max()
    expected = a.astype(float) @ b.astype(float)
    for out in (None, empty(backend, (n, m), dtype, orders[2])):
        result = backend.matmul(arrange(backend, a, orders[0]), arrange(backend, b, orders[1]), out=out)
        assert out is None or result is out
        got = backend.to_numpy(result)
        assert got.dtype == dtype
        np.testing.assert_allclose(got, expected, rtol=0, atol=float(bound * k * np.finfo(dtype).eps + 1e-300))


@given(
    n=SIZES,
    m=SIZES,
    dtype=st.sampled_from(DTYPES),
    activation=st.sampled_from(list(HIDDEN_ACTIVATIONS)),
    with_bias=st.booleans(),
    orders=st.tuples(*[st.sampled_from(ORDERS)] * 2),
    where=st.sampled_from(["new", "out", "in place"]),
)
def test_activate(backend, n, m, dtype, activation, with_bias, orders, where):
    rng = np.random.default_rng([n, m])
    Z = (4 * rng.normal(size=(n, m))).astype(dtype)
    b = rng.normal(size=(n, 1)).astype(dtype) if with_bias else None
    # The sum is rounded before f sees it: part of the definition in this precision.
    expected = ACTIVATIONS[activation][0]((Z if b is None else Z + b).astype(float))
    if where == "in place" and orders[0] == "read-only":
        orders = ("C", orders[1])
    given_Z = arrange(backend, Z.copy(), orders[0])
    slope = empty(backend, (n, m), dtype, orders[1]) if HIDDEN_ACTIVATIONS[activation].stores_slope else None
    out = {"new": None, "out": empty(backend, (n, m), dtype, orders[1]), "in place": given_Z}[where]
    result = backend.activate(given_Z, activation, None if b is None else backend.asarray(b), out=out, slope=slope)
    assert out is None or result is out
    # exp(-z²/2) multiplies the relative error of a rounded z² by it, in the oracle too.
    tolerance = 200 * np.finfo(dtype).eps if activation == "gelu" else None
    assert_close(backend.to_numpy(result), expected, activation, elementwise=True, tolerance=tolerance)
    if slope is not None:
        expected = ACTIVATIONS[activation][1]((Z if b is None else Z + b).astype(float))
        assert_close(backend.to_numpy(slope), expected, f"slope of {activation}")
    if where != "in place":
        assert np.array_equal(backend.to_numpy(given_Z), Z)
    if activation == "sigmoid" and b is None:
        again = backend.sigmoid(arrange(backend, Z, orders[0]), out=empty(backend, (n, m), dtype, orders[1]))
        assert np.array_equal(backend.to_numpy(again), backend.to_numpy(result))


@given(
    n=SIZES,
    k=st.sampled_from([1, 2, 3, 4, 5, 10, 33]),
    m=SIZES,
    dtype=st.sampled_from(DTYPES),
    activation=st.sampled_from(list(HIDDEN_ACTIVATIONS)),
    orders=st.tuples(*[st.sampled_from(ORDERS)] * 4),
)
def test_fused_backward(backend, n, k, m, dtype, activation, orders):
    rng = np.random.default_rng([n, k, m])
    W, dZ = rng.normal(size=(n, k)).astype(dtype), rng.normal(size=(k, m)).astype(dtype)
    f = ACTIVATIONS[activation][HIDDEN_ACTIVATIONS[activation].stores_slope]
    A = f(rng.normal(size=(n, m))).astype(dtype)
    slope = derivative(activation, A.astype(float))
    expected = (W.astype(float) @ dZ.astype(float)) * slope
    bound = 2 * np.abs(W).astype(float) @ np.abs(dZ).astype(float)  # times f' < 2, whose 1 - a² may cancel
    arranged = [arrange(backend, x, order) for x, order in zip((W, dZ, A), orders[:3], strict=True)]
    for out in (None, empty(backend, (n, m), dtype, orders[3])):
        result = backend.fused_backward(*arranged, activation, out=out)
        assert out is None or result is out
        got = backend.to_numpy(result)
        assert got.dtype == dtype
        assert np.isfinite(got).all()
        assert (np.abs(got - expected) <= bound * (k + 8) * np.finfo(dtype).eps).all()
    for x, original in zip(arranged, (W, dZ, A), strict=True):
        assert np.array_equal(backend.to_numpy(x), original), "an input was changed"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", HIDDEN_ACTIVATIONS)
def test_accuracy_over_the_whole_range(backend, dtype, activation):
    """A few units in the last place, from the smallest numbers to saturation."""
    exponents = np.linspace(-30, 6, 4001) if dtype == "float32" else np.linspace(-280, 9, 4001)
    Z = np.concatenate([-(2.0**exponents), [0.0], 2.0**exponents]).astype(dtype)[None]
    expected = ACTIVATIONS[activation][0](Z.astype(float))
    # Below the normal numbers results may be flushed or held at the smallest exponential.
    normal = np.abs(expected) > 1e3 * np.finfo(dtype).tiny
    got = backend.to_numpy(backend.activate(backend.asarray(Z), activation))
    if activation == "gelu":  # exp(-z²/2) multiplies the relative error of a rounded z² by it, the oracle's too
        normal &= (-12 if dtype == "float32" else -3) < Z
    assert_close(got[normal], expected[normal], activation, elementwise=True)
    assert (np.abs(got[~normal]) <= np.maximum(2 * np.abs(expected[~normal]), 1e3 * np.finfo(dtype).tiny)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_huge_and_missing_values(backend, dtype):
    Z = np.array([[1e4, -1e4, 1e38, -1e38, np.inf, -np.inf, np.nan]], dtype)
    with np.errstate(invalid="ignore"):  # -infinity times 0
        got = {name: backend.to_numpy(backend.activate(backend.asarray(Z), name))[0] for name in HIDDEN_ACTIVATIONS}
    tiny = 10 * np.finfo(dtype).tiny
    np.testing.assert_allclose(got["sigmoid"][:6], [1, 0, 1, 0, 1, 0], atol=tiny)
    np.testing.assert_allclose(got["tanh"][:6], [1, -1, 1, -1, 1, -1])
    np.testing.assert_array_equal(got["relu"][:6], np.maximum(Z[0, :6], 0))
    np.testing.assert_array_equal(got["identity"][:6], Z[0, :6])
    for name in set(HIDDEN_ACTIVATIONS) - {"sigmoid", "tanh"}:
        np.testing.assert_array_equal(got[name][[0, 2]] > 0, True)
        assert np.isfinite(got[name][:4]).all(), name
    assert all(np.isnan(values[6]) for values in got.values()), "NaN must not be hidden"


@pytest.mark.parametrize("activation", HIDDEN_ACTIVATIONS)
def test_fused_backward_keeps_nan(backend, activation):
    W, dZ, A = (backend.asarray(x) for x in (np.ones((3, 1)), np.array([[1.0, np.nan]]), np.full((3, 2), 0.5)))
    got = backend.to_numpy(backend.fused_backward(W, dZ, A, activation))
    assert np.isnan(got[:, 1]).all()
    assert np.isfinite(got[:, 0]).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (257, 1031)])
def test_all_finite(backend, dtype, order, shape):
    x = np.random.default_rng(0).normal(size=shape).astype(dtype)
    assert backend.all_finite(arrange(backend, x, order))
    largest = np.full(shape, np.finfo(dtype).max, dtype)  # whose sum is not finite
    assert backend.all_finite(arrange(backend, largest, order))
    for value in (np.nan, np.inf, -np.inf):
        for place in ((0, 0), (-1, -1)):
            spoiled = x.copy()
            spoiled[place] = value
            assert not backend.all_finite(arrange(backend, spoiled, order))


def test_large_arrays_are_shared_among_threads_alike(backend):
    """Sizes past the point where work is split: the result is that of the pieces."""
    rng = np.random.default_rng(0)
    Z = rng.normal(size=(67, 20011)).astype(np.float32)
    b, W, dZ = (rng.normal(size=shape).astype(np.float32) for shape in ((67, 1), (67, 2), (2, 20011)))
    for arrange_all in (np.ascontiguousarray, np.asfortranarray):
        native = backend.asarray(arrange_all(Z))
        A = backend.activate(native, "sigmoid", backend.asarray(b))
        assert_close(backend.to_numpy(A), ACTIVATIONS["sigmoid"][0]((Z + b).astype(float)), elementwise=True)
        exact = backend.to_numpy(A).astype(float)
        back = backend.fused_backward(backend.asarray(W), backend.asarray(dZ), A)
        assert_close(backend.to_numpy(back), (W.astype(float) @ dZ) * exact * (1 - exact))
