"""The float32 division of the kernels, common.cuh's `divide`: how far off it is, and the sigmoid made of it."""

from __future__ import annotations

import numpy as np
import pytest
from harness.emulator import compile_source
from harness.fake_cupy import RawKernel, allocate, copied

from fusedmlp.backends.cupy import kernel_sources

SMALLEST = np.finfo(np.float32).tiny  # the smallest normal number, 2^-126
DIVIDE = """
extern "C" __global__ void quotients(const float* x, const float* y, float* out, Index n) {
    for (Index i = first_element<1>(); i < n; i += next_elements<1>()) out[i] = divide(x[i], y[i]);
}
"""


def quotients(x, y):
    """x / y by the harness's twin of the hardware's division."""
    common = kernel_sources.source("activations.cu").split('extern "C"')[0].split("#define ACTIVATE")[0]
    kernel = RawKernel(compile_source(common + DIVIDE).get_function("quotients"), [])
    x, y = np.broadcast_arrays(np.float32(x), np.float32(y))
    out = allocate(x.shape, np.float32)
    kernel((2,), (256,), (copied(x), copied(y), out, np.int64(x.size)))
    return out.get()


def units(got, exact):
    """The errors in units of the exact results' last places."""
    return np.abs(got - exact) / np.spacing(np.abs(exact).astype(np.float32)).astype(float)


def test_the_twin_is_as_wrong_as_the_hardware_may_be(compiler):
    rng = np.random.default_rng(0)
    x, y = (2 ** rng.uniform(-50, 50, 20_000).astype(np.float32) for _ in range(2))
    errors = units(quotients(x, y), x.astype(float) / y)
    assert errors.max() <= 2
    assert np.median(errors) > 0.5  # a test that needs the right bits must not pass by chance


def test_special_quotients(compiler):
    got = quotients([1, 1, 1, -3, 1, 0, 1, np.inf], [np.nan, np.inf, 2.0**127, 2.0**-3, 1, 0, 0, 2.0**127])
    np.testing.assert_array_equal(got, [np.nan, 0, 0, -24, 1, np.nan, np.inf, np.nan])


@pytest.mark.parametrize("device", ["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def test_sigmoid(request, device):
    """Within 5 units in the last place wherever it is a normal number, and never above 1."""
    backend = request.getfixturevalue(device)
    z = np.concatenate([np.linspace(-87.3, 30, 200_000), [88.8, 1e30, np.inf]]).astype(np.float32)
    A = backend.to_numpy(backend.activate(backend.asarray(z[None]), "sigmoid"))[0]
    assert units(A, 1 / (1 + np.exp(-z.astype(float)))).max() <= 5
    assert A.max() == 1
    beyond = np.float32([-87.5, -88.5, -89.5, -1e30, -np.inf, np.nan])
    A = backend.to_numpy(backend.activate(backend.asarray(beyond[None]), "sigmoid"))[0]
    assert np.all(A[:-1] < SMALLEST)
    assert np.isnan(A[-1])
