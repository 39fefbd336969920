"""What the launch function refuses, the grids it chooses, and which kernels are compiled."""

from __future__ import annotations

import numpy as np
import pytest
from harness import fake_cupy
from harness.emulator import compile_source
from hypothesis import given
from hypothesis import strategies as st

from fusedmlp import Network
from fusedmlp.backends.cupy import CupyBackend, kernel_sources
from fusedmlp.backends.cupy.launch import (
    LARGEST_GRID_Y,
    THREADS,
    Operand,
    check_matrix,
    grid_and_block,
)


def ones(shape, dtype="float32", **kwargs):
    return fake_cupy.copied(np.ones(shape, dtype), **kwargs)


class TestChecks:
    """Every wrong argument is named, with what came and what was expected, and nothing is launched."""

    @pytest.fixture(autouse=True)
    def _nothing_launched(self, cupy):
        yield
        assert cupy.launches == []

    @pytest.mark.parametrize("dtype", ["float16", "int32", "complex64", "bool"])
    def test_dtypes_that_no_kernel_has(self, emulated, dtype):
        x = ones((4, 4), dtype)
        for call in (
            lambda: emulated.sigmoid(x),
            lambda: emulated.activate(x, "relu"),
            lambda: emulated.matmul(x, x),
            lambda: emulated.fused_backward(x, x, x),
        ):
            with pytest.raises(TypeError, match=f"expected float32 or float64; got an array of {dtype}"):
                call()

    def test_arrays_that_do_not_go_together(self, emulated):
        x, y, host = ones((4, 4)), ones((4, 4), "float64"), np.ones((4, 4), np.float32)
        for message, call in (
            ("bias: expected float32, .*; got float64", lambda: emulated.activate(x, "tanh", y[:, :1])),
            ("Z: expected float64", lambda: emulated.sigmoid(x, out=y)),
            ("dZ: expected float32, .*; got float64", lambda: emulated.fused_backward(x, y, x)),
            ("b: expected float32", lambda: emulated.matmul(x, y)),
            ("out: expected float32", lambda: emulated.matmul(x, x, out=y)),
            ("Z: expected a cupy.ndarray; got numpy.ndarray", lambda: emulated.sigmoid(host)),
            ("dZ: expected a cupy.ndarray; got numpy", lambda: emulated.fused_backward(x, host, x)),
            ("b: expected a cupy.ndarray; got numpy", lambda: emulated.matmul(x, host)),
        ):
            with pytest.raises(TypeError, match=message):
                call()

    def test_shapes(self, emulated):
        x = ones((4, 5))
        with pytest.raises(ValueError, match=r"bias: expected shape \(4, 1\); got shape \(1, 5\)"):
            emulated.activate(x, "tanh", ones((1, 5)))
        with pytest.raises(ValueError, match=r"Z: expected shape \(5, 4\); got shape \(4, 5\)"):
            emulated.sigmoid(x, out=ones((5, 4)))
        with pytest.raises(ValueError, match=r"dZ: expected shape \(2, 5\); got shape \(3, 5\)"):
            emulated.fused_backward(ones((4, 2)), ones((3, 5)), x)
        with pytest.raises(ValueError, match=r"A: expected shape \(4, 5\); got shape \(3, 5\)"):
            emulated.fused_backward(ones((4, 2)), ones((2, 5)), ones((3, 5)))
        with pytest.raises(ValueError, match=r"got a \(4, 5\) and b \(4, 5\)"):
            emulated.matmul(x, x)
        with pytest.raises(ValueError, match=r"out: expected shape \(4, 6\); got shape \(6, 4\)"):
            emulated.matmul(x, ones((5, 6)), out=ones((6, 4)))
        with pytest.raises(ValueError, match=r"Z: expected 2 axes|Z: expected shape"):
            emulated.sigmoid(ones((4,)))

    def test_activations(self, emulated):
        x = ones((4, 4))
        with pytest.raises(ValueError, match="activation: expected one of sigmoid, .*; got 'swish'"):
            emulated.activate(x, "swish")
        with pytest.raises(ValueError, match="activation: expected one of"):
            emulated.fused_backward(x, x, x, "softmax")

    def test_devices(self, emulated, cupy):
        x, other = ones((4, 4)), fake_cupy.allocate((4, 4), "float32", device_id=1)
        with pytest.raises(ValueError, match="out: expected an array on the current GPU, 0; it lies on GPU 1"):
            emulated.sigmoid(x, out=other)

    def test_broadcast_outputs_and_odd_strides(self, emulated, cupy):
        x = ones((4, 4))
        view = fake_cupy.ndarray(np.broadcast_to(x.host[:1], (4, 4)), x.memory)
        with pytest.raises(ValueError, match="out: expected an array that can be written to"):
            emulated.sigmoid(x, out=view)
        emulated.asarray(x)  # to read from such a view is fine, see below
        odd = np.lib.stride_tricks.as_strided(x.host, (3, 3), (6, 4))
        with pytest.raises(ValueError, match="strides of .* bytes do not fit elements of 4 bytes"):
            check_matrix(cupy, "Z", fake_cupy.ndarray(odd, x.memory))

    def test_axes_too_long_for_cublas(self, emulated):
        row = ones((1, 1))
        row._raw = np.broadcast_to(row.host, (1, 2**31))
        with pytest.raises(ValueError, match="axes of at most"):
            emulated.matmul(ones((3, 1)), row)

    def test_scalars_without_a_size(self, emulated):
        x = ones((4, 4))
        for scalar in (4, 4.0):
            with pytest.raises(TypeError, match="expected numpy scalars"):
                emulated.launcher.launch(
                    "fused_backward.cu",
                    "fused_backward_4_tanh",
                    walked=[("A", x), ("out", x)],
                    operands=[Operand("W", x, (4, 4)), Operand("dZ", x, (4, 4))],
                    scalars=[scalar],
                )

    @pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
    def test_empty_arrays_need_no_kernel(self, emulated, shape):
        Z = ones(shape)
        assert emulated.sigmoid(Z).shape == shape
        assert emulated.activate(Z, "tanh", ones((shape[0], 1)), out=Z) is Z
        W, dZ = ones((shape[0], 1)), ones((1, shape[1]))
        assert emulated.fused_backward(W, dZ, Z).shape == shape


@given(
    lines=st.integers(1, 2**40), length=st.integers(1, 2**40), pack=st.sampled_from([1, 2, 4]), n=st.integers(1, 200)
)
def test_grids_fit_the_hardware_and_cover_something(lines, length, pack, n):
    (x, y), (along, over) = grid_and_block(lines, length, pack, n)
    assert along * over == THREADS
    assert 1 <= x <= 2**31 - 1
    assert 1 <= y <= LARGEST_GRID_Y
    # No block without work, and never more than fill the GPU a few times over.
    assert (x - 1) * along * pack < length
    assert (y - 1) * over < lines
    assert x * y <= max(1, 16 * n)
    # A line shorter than a block leaves the other threads to the next lines.
    assert along // 2 * pack < length


@pytest.mark.parametrize("sizes", [(5, 8, 1), (5, 8, 7)])
def test_a_network_asks_for_its_kernels_alone(emulated, cupy, sizes):
    """Of a file whose kernels take long to compile."""
    asked = []
    make = cupy.RawModule

    def module(code, options):
        asked.extend(option for option in options if option.startswith("-DONE="))
        return make(code=code, options=options)

    cupy.RawModule = module
    network = Network(sizes, "tanh", backend=emulated)
    network.loss_and_gradients(np.zeros((sizes[0], 3)), np.zeros((sizes[-1], 3)))
    (option,) = asked
    file = "narrow_step.cu" if network.engine.path == "narrow" else "hidden_layer.cu"
    names = compile_source(kernel_sources.source(file), (option,)).names
    assert names[-1] in cupy.launches
    assert len(names) == (2 if file == "narrow_step.cu" else 1)


def test_every_gpu_is_told_how_much_shared_memory(compiler, monkeypatch):
    """By a network on the first of two GPUs, and then on the second."""
    cupy = fake_cupy.make(devices=2)
    fake_cupy.install(monkeypatch, cupy)
    backend, X = CupyBackend(), np.ones((64, 40), np.float32)
    results = []
    for device in (0, 1):
        with cupy.cuda.Device(device):
            net = Network([64, 1024, 1], backend=backend, random_state=0)
            assert net.engine.path == "narrow"
            results.append(net.loss_and_gradients(X, np.ones((1, 40)))[0])
    assert results[0] == results[1]
