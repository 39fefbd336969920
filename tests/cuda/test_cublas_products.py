"""CublasProducts through our own handles of cuBLAS, over a stand-in with its C signatures: layouts, precision, streams,
threads, devices, memory, and what goes wrong.
"""

from __future__ import annotations

import gc
import itertools
import threading

import numpy as np
import pytest
from harness import fake_cupy, fake_streams
from harness.fake_cupy import Allocation
from numpy.lib.stride_tricks import as_strided

from fusedmlp import Network
from fusedmlp.backends.cupy import CupyBackend
from fusedmlp.backends.cupy.cublas_products import LARGEST, CublasProducts, stored

DTYPES = ("float32", "float64")
IN_PLACE = ("C", "F", "rows with gaps", "columns with gaps")
COPIED = ("strided", "reversed")
READ_ONLY = ("one row", "one column")
SHAPES = [(3, 5, 4), (1, 7, 5), (7, 1, 5), (5, 7, 1), (1, 1, 6), (6, 1, 1), (1, 6, 1), (1, 1, 1), (33, 65, 17)]


def arrange(x, layout):
    """x on the fake GPU; what lies in gaps is NaN."""
    if layout in ("C", "F"):
        return fake_cupy.copied(x, layout)
    rows, columns = x.shape
    if layout == "reversed":
        view = fake_cupy.copied(np.ascontiguousarray(x[::-1, ::-1]))[::-1, ::-1]
    elif layout == "rows with gaps":
        view = fake_cupy.allocate((rows, columns + 3), x.dtype)[:, 1 : columns + 1]
    elif layout == "columns with gaps":
        view = fake_cupy.allocate((rows + 3, columns), x.dtype, "F")[1 : rows + 1]
    elif layout == "strided":
        view = fake_cupy.allocate((2 * rows, 3 * columns), x.dtype)[::2, ::3]
    elif layout == "one row":
        one = fake_cupy.copied(x[:1])
        return fake_cupy.ndarray(np.broadcast_to(one.host, x.shape), one.memory)
    else:
        one = fake_cupy.copied(x[:, :1])
        return fake_cupy.ndarray(np.broadcast_to(one.host, x.shape), one.memory)
    view[...] = fake_cupy.copied(x)
    return view


def check(out, a, b, of=1):
    """`out` is the product a b, to the rounding of its dtype; elsewhere in its memory is NaN."""
    a, b = (x.host.astype(float) for x in (a, b))
    error = np.abs(out.host - a @ b)
    assert (error <= of * (a.shape[1] + 1) * np.finfo(out.dtype).eps * (np.abs(a) @ np.abs(b))).all()
    everything = np.frombuffer(out.memory.piece, out.dtype)
    assert np.isnan(everything).sum() == everything.size - out.size


@pytest.fixture
def products(cupy):
    """CublasProducts that have computed something: handle and memory are there."""
    ready = CublasProducts(cupy)
    x = fake_cupy.copied(np.ones((1, 1), np.float32))
    ready.gemm(x, x, fake_cupy.copied(np.ones((1, 1), np.float32)))
    return ready


@pytest.fixture
def square():
    """A matrix of ones."""
    return fake_cupy.copied(np.ones((4, 4), np.float32))


class TestLayouts:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("shape", SHAPES)
    def test_every_combination(self, products, shape, dtype):
        """Of all three layouts for one shape and dtype, of any two for the others."""
        n, k, m = shape
        rng = np.random.default_rng(0)
        a, b = rng.normal(size=(n, k)).astype(dtype), rng.normal(size=(k, m)).astype(dtype)
        inputs, outputs = IN_PLACE + COPIED + READ_ONLY, IN_PLACE + COPIED
        combinations = list(itertools.product(inputs, inputs, outputs))
        if (shape, dtype) != (SHAPES[0], DTYPES[0]):
            combinations = combinations[::5]  # 5 divides none of 8, 8 and 6
        for layouts in combinations:
            A, B = arrange(a, layouts[0]), arrange(b, layouts[1])
            out = arrange(np.full((n, m), np.nan, dtype), layouts[2])
            made = Allocation.made
            products.gemm(A, B, out)
            check(out, A, B)
            if set(layouts) <= set(IN_PLACE):
                assert Allocation.made == made, f"{layouts} copied something"

    @pytest.mark.parametrize("layout", IN_PLACE + COPIED)
    def test_a_sum_over_nothing_is_zero(self, products, layout):
        a, b = fake_cupy.allocate((3, 0), "float32"), fake_cupy.allocate((0, 4), "float32")
        out = arrange(np.full((3, 4), np.nan, np.float32), layout)
        products.gemm(a, b, out)
        assert (out.host == 0).all()

    @pytest.mark.parametrize("stride", [-40, 0, 4, 8, 4096, 2**40])
    @pytest.mark.parametrize("layout", IN_PLACE)
    def test_strides_of_axes_of_length_1_say_nothing(self, products, layout, stride):
        rng = np.random.default_rng(0)
        for n, k, m in itertools.product((1, 2, 5), repeat=3):
            arrays = []
            for rows, columns in ((n, k), (k, m), (n, m)):
                x = arrange(rng.normal(size=(rows, columns)).astype(np.float32), layout)
                odd = tuple(stride if length == 1 else s for length, s in zip(x.shape, x.strides, strict=True))
                arrays.append(fake_cupy.ndarray(as_strided(x.host, x.shape, odd), x.memory))
            made = Allocation.made
            products.gemm(*arrays)
            assert Allocation.made == made
            check(arrays[2], *arrays[:2])

    def test_lines_that_overlap_are_copied(self, products):
        """A window that slides over a vector: BLAS would refuse the leading dimension."""
        vector = fake_cupy.copied(np.arange(10.0, dtype=np.float32))
        for strides in ((4, 4), (8, 4), (4, 8)):
            windows = fake_cupy.ndarray(as_strided(vector.host, (3, 4), strides), vector.memory)
            assert stored(windows) is None
            out = fake_cupy.allocate((3, 3), "float32")
            products.gemm(windows, windows.T, out)
            check(out, windows, windows.T)

    def test_a_leading_dimension_beyond_32_bits_is_copied(self):
        x = fake_cupy.copied(np.ones((2, 2), np.float32))
        for lines, readable in ((LARGEST, True), (LARGEST + 1, False)):
            far = fake_cupy.ndarray(as_strided(x.host, (2, 2), (4 * lines, 4)), x.memory)
            assert (stored(far) is not None) is readable
            assert (stored(far.T) is not None) is readable


class TestPrecision:
    def test_tf32_uses_10_bits_of_the_mantissa(self, products, cupy):
        rng = np.random.default_rng(0)
        a, b = (fake_cupy.copied(rng.normal(size=(64, 64)).astype(np.float32)) for _ in range(2))
        strict, fast = fake_cupy.allocate((64, 64), "float32"), fake_cupy.allocate((64, 64), "float32")
        products.gemm(a, b, strict)
        products.gemm(a, b, fast, "medium")
        assert [product.compute for product in cupy.cublas.products[-2:]] == ["strict", "tf32"]
        check(strict, a, b)
        exact, scale = (f(a.host.astype(float)) @ f(b.host.astype(float)) for f in (np.asarray, np.abs))
        error = np.abs(fast.host - exact)
        assert (error <= 2.0**-10 * scale).all()
        assert (error > 2.0**-20 * scale).any(), "strict, not TF32"

    def test_float64_stays_float64(self, products, cupy):
        a = fake_cupy.copied(np.random.default_rng(0).normal(size=(9, 9)))
        out = fake_cupy.allocate((9, 9), "float64")
        products.gemm(a, a, out, "medium")
        assert cupy.cublas.products[-1].compute == "strict"
        check(out, a, a)

    def test_backends_of_each_precision(self, emulated, cupy, square):
        fast = emulated.at_precision("tf32")
        assert (emulated.precision, fast.precision) == ("strict", "medium")
        assert fast is emulated.at_precision("medium") is fast.at_precision("tf32")
        assert fast.at_precision("strict") is emulated is emulated.at_precision("strict")
        assert fast.products is emulated.products
        assert fast.launcher is emulated.launcher
        assert fast.describe() == emulated.describe() | {"precision": "medium: TF32"}
        high = emulated.at_precision("high")
        for backend, compute in ((emulated, "strict"), (fast, "tf32"), (high, "strict")):
            backend.matmul(square, square)
            assert cupy.cublas.products[-1].compute == compute
        described = "high: 3xTF32 in the narrow and resident kernels where that is faster, float32 by cuBLAS"
        assert high.describe()["precision"] == described
        assert len(cupy.cublas.handles) == 1
        with pytest.raises(ValueError, match="precision: expected one of strict, high, medium, tf32; got 'half'"):
            emulated.at_precision("half")

    @pytest.mark.usefixtures("never_resident")
    @pytest.mark.parametrize("sizes", [(5, 8, 2), (5, 8, 7), (5, 8, 20)])  # narrow, middle, composed
    def test_networks(self, emulated, cupy, sizes):
        rng = np.random.default_rng(0)
        X, Y = rng.normal(size=(5, 30)), rng.integers(0, 2, (sizes[-1], 30))
        flats = {}
        computes = {"strict": "strict", "high": "strict", "medium": "tf32"}
        for precision, compute in computes.items():
            net = Network(sizes, backend=emulated, random_state=0, precision=precision)
            del cupy.cublas.products[:]
            net.fit(X, Y, epochs=2, batch_size=10)
            by_cublas = sizes[-1] > 2
            assert {product.compute for product in cupy.cublas.products} == ({compute} if by_cublas else set())
            flats[precision] = net.parameters.flat.get()
        assert 0 < np.abs(flats["medium"] - flats["strict"]).max() < 0.02
        assert np.abs(flats["high"] - flats["strict"]).max() < 1e-6

    @pytest.mark.parametrize("variable", ["CUPY_TF32", "NVIDIA_TF32_OVERRIDE"])
    def test_settings_of_others_allow_nothing(self, emulated, cupy, square, monkeypatch, variable):
        monkeypatch.setenv(variable, "1")
        emulated.matmul(square, square)
        assert cupy.cublas.products[-1].compute == "strict"


class TestThreads:
    def test_each_has_a_handle_for_as_long_as_it_lives(self, products, cupy):
        barrier, wrong = threading.Barrier(4), []

        def work(seed):
            rng = np.random.default_rng(seed)
            for _ in range(20):
                a, b = (fake_cupy.copied(rng.normal(size=(6, 6))) for _ in range(2))
                out = fake_cupy.allocate((6, 6), "float64")
                barrier.wait()
                products.gemm(a, b, out)
                wrong.extend([seed] * (not np.allclose(out.host, a.host @ b.host, rtol=0, atol=1e-13)))

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        users = {}
        for product in cupy.cublas.products:
            users.setdefault(product.handle, set()).add(product.thread)
        assert len(users) == 5
        assert all(len(of_one) == 1 for of_one in users.values())
        gc.collect()
        assert len(cupy.cublas.handles) == 1, "the handles of threads that have ended are still there"

    def test_the_handle_goes_with_its_owner(self, cupy, square):
        backend = CupyBackend()
        backend.matmul(square, square)
        assert len(cupy.cublas.handles) == 1
        del backend
        gc.collect()
        assert cupy.cublas.handles == {}
        assert len(cupy.cublas.destroyed) == 1

    def test_a_forked_process_leaves_the_handle_alone(self, cupy, square, monkeypatch):
        products = CublasProducts(cupy)
        products.gemm(square, square, square.copy())
        monkeypatch.setattr("os.getpid", lambda: -1)
        del products
        gc.collect()
        assert len(cupy.cublas.handles) == 1


class TestDevices:
    def test_a_handle_for_each(self, cupy):
        products = CublasProducts(cupy)

        def handle_on(device, products):
            x, out = (fake_cupy.allocate((2, 2), "float32", device_id=device) for _ in range(2))
            x.fill(1)
            with cupy.cuda.Device(device):
                products.gemm(x, x, out)
            return cupy.cublas.products[-1].handle

        second, first = handle_on(1, products), handle_on(0, products)
        assert handle_on(1, products) == second
        assert [cupy.cublas.handles[handle].device for handle in (first, second)] == [0, 1]
        del products
        gc.collect()
        assert sorted(cupy.cublas.destroyed) == sorted([(first, 0), (second, 1)])


@pytest.fixture
def no_order(monkeypatch):
    """These tests are about handles and their memory; they let streams meet as they like."""
    monkeypatch.setattr(fake_streams.Users, "touch", lambda users, stream, action=None: None)


@pytest.mark.usefixtures("no_order")
class TestStreams:
    def test_a_change_is_followed(self, products, cupy, square):
        out = square.copy()
        stream = cupy.cuda.Stream(non_blocking=True)
        (handle,) = cupy.cublas.handles.values()
        memory = handle.workspace
        with stream:
            products.gemm(square, square, out)
            products.gemm(square, square, out)
            assert cupy.cublas.products[-1].stream == stream.ptr
            other = handle.workspace
        assert other != memory, "two streams work in the same memory"
        made = Allocation.made
        products.gemm(square, square, out)
        assert cupy.cublas.products[-1].stream == 0
        assert handle.workspace == memory
        with stream:
            products.gemm(square, square, out)
            assert handle.workspace == other
        assert Allocation.made == made
        assert handle.streams == [0, stream.ptr, 0, stream.ptr], "set again without need"

    def test_memory_goes_with_its_stream(self, products, cupy, square):
        stream = cupy.cuda.Stream()
        with stream:
            products.gemm(square, square, square.copy())
        (handle,) = cupy.cublas.handles.values()
        of_the_stream = handle.workspace
        del stream
        gc.collect()
        Allocation.holding(*of_the_stream)  # the handle is still set to it
        products.gemm(square, square, square.copy())
        gc.collect()
        with pytest.raises(AssertionError, match="lie in no allocation"):
            Allocation.holding(*of_the_stream)


@pytest.mark.usefixtures("no_order")
class TestCapture:
    def test_a_first_product_is_refused(self, cupy, products, square):
        message = "first product in a stream cannot be captured in a CUDA graph: compute one before begin_capture"
        for of in (products, CublasProducts(cupy)):  # the stream is new; the handle too
            stream, out = cupy.cuda.Stream(), square.copy()
            with stream:
                stream.begin_capture()
                with pytest.raises(RuntimeError, match=message):
                    of.gemm(square, square, out)
                stream.end_capture()
                of.gemm(square, square, out)

    def test_copies_are_refused(self, cupy, products, square):
        strided = arrange(np.ones((4, 4), np.float32), "strided")
        stream = cupy.cuda.Stream()
        with stream:
            products.gemm(square, square, square.copy())
            stream.begin_capture()
            for name, arrays in (
                ("a", (strided, square, square)),
                ("b", (square, strided, square)),
                ("out", (square, square, strided)),
            ):
                with pytest.raises(RuntimeError, match=rf"{name}: strides of \(96, 12\) bytes need a copy"):
                    products.gemm(*arrays)
