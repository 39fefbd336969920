"""Products with an epilogue, over a stand-in with cuBLASLt's C signatures: numbers, layouts, memory and errors."""

from __future__ import annotations

import gc
import logging
import threading

import numpy as np
import pytest
from harness import fake_cupy
from harness.fake_cupy import Allocation
from test_cublas_products import IN_PLACE, arrange

from fusedmlp.backends.cupy import CupyBackend
from fusedmlp.backends.cupy.cublas import CublasError
from fusedmlp.backends.cupy.cublaslt import Algorithm, Attribute, CublasLt, Epilogue
from fusedmlp.backends.cupy.epilogue_products import mask_words

SHAPES = [(3, 5, 4), (1, 7, 5), (5, 7, 1), (1, 1, 1), (130, 6, 9), (128, 33, 17)]


class Case:
    """Operands of relu(Wᵀ A + b), of a hidden layer of n units, and of the way back."""

    def __init__(self, backend, n=130, k=6, m=9, layouts=("C", "C"), precision="strict"):
        rng = np.random.default_rng(n + m)
        self.products, self.precision, self.n, self.m = backend.epilogues, precision, n, m
        self.a, self.b = rng.normal(size=(n, k)).astype(np.float32), rng.normal(size=(k, m)).astype(np.float32)
        self.bias = rng.normal(size=n).astype(np.float32)
        self.given = [arrange(x, layout) for x, layout in zip((self.a, self.b), layouts, strict=True)]
        self.mask = fake_cupy.allocate((m, mask_words(n)), "float32")

    def room(self):
        """Memory for the result: columns with gaps."""
        return fake_cupy.allocate((self.m, self.n + 3), "float32")[:, : self.n].T

    def run(self, epilogue, out, bias=None, mask=None):
        return self.products.multiply(epilogue, *self.given, out, self.precision, bias, mask)


def close(got, expected, terms, relative=1.0):
    scale = np.abs(expected).max() + 1
    np.testing.assert_allclose(got, expected, rtol=0, atol=4 * relative * (terms + 1) * 1.2e-7 * scale)


@pytest.mark.parametrize("layout", IN_PLACE)
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_and_backward(emulated, cupy, shape, layout):
    """relu and its mask, with and without bias; the derivative by that mask, with and without sums."""
    n, k, m = shape
    assert Case(emulated).run(Epilogue.RELU, Case(emulated).room())  # handle and workspace are there
    for first, second in ((layout, "C"), ("C", layout), (layout, layout)):
        case = Case(emulated, n, k, m, (first, second))
        product = case.a.astype(float) @ case.b
        bias = fake_cupy.copied(case.bias)
        for epilogue, b, mask in (
            (Epilogue.RELU, None, None),
            (Epilogue.RELU_BIAS, bias, None),
            (Epilogue.RELU_AUX, None, case.mask),
            (Epilogue.RELU_AUX_BIAS, bias, case.mask),
        ):
            out, made = case.room(), Allocation.made
            assert case.run(epilogue, out, b, mask)
            assert Allocation.made == made, "an allocation"
            Z = product + (0 if b is None else case.bias[:, None].astype(float))
            close(out.get(), np.maximum(Z, 0), k)
            assert cupy.cublaslt.products[-1][:3] == (epilogue, "strict", 0)
        sums = fake_cupy.allocate((n,), "float32")
        for epilogue, db in ((Epilogue.DRELU, None), (Epilogue.DRELU_BGRAD, sums)):
            out = case.room()
            assert case.run(epilogue, out, db, case.mask)
            expected = np.where(Z > 0, product, 0)
            close(out.get(), expected, k)
        close(sums.get(), expected.sum(axis=1), k * m)


def test_tf32(emulated, cupy):
    results = []
    for precision, compute in (("strict", "strict"), ("medium", "tf32")):
        case = Case(emulated, precision=precision)
        out = case.room()
        assert case.run(Epilogue.RELU, out)
        results.append(out.get())
        assert cupy.cublaslt.products[-1].compute == compute
    assert 1e-5 < np.abs(results[1] - results[0]).max() < 1e-2


def test_what_has_no_algorithm_is_said_once_and_left_to_the_caller(emulated, cupy, caplog):
    case = Case(emulated)
    cupy.cublaslt.missing.add(Epilogue.RELU)
    with caplog.at_level(logging.INFO, "fusedmlp"):
        assert not case.run(Epilogue.RELU, case.room())
        assert not case.run(Epilogue.RELU, case.room())
    assert [record.message for record in caplog.records] == [
        "cuBLASLt has no algorithm for RELU of (130, 6) times (6, 9), float32, strict, "
        "CUBLAS_STATUS_NOT_SUPPORTED (15): "
        "the product and what follows it run one after the other"
    ]
    assert cupy.cublaslt.searches == 1
    assert case.run(Epilogue.RELU_BIAS, case.room(), fake_cupy.copied(case.bias))


def test_an_algorithm_is_looked_for_once(emulated, cupy, monkeypatch):
    """For a shape, a layout and an alignment; which memory it is matters to no plan."""
    case = Case(emulated)
    for _ in range(2):
        for room in (case.room(), case.room()):
            assert case.run(Epilogue.RELU_AUX, room, mask=fake_cupy.allocate(case.mask.shape, "float32"))
    assert cupy.cublaslt.searches == 1
    assert case.run(Epilogue.RELU_AUX, fake_cupy.allocate((9, 131), "float32")[:, 1:].T, mask=case.mask)
    assert cupy.cublaslt.searches == 2, "an algorithm for memory that is aligned better"
    monkeypatch.setattr("fusedmlp.backends.cupy.epilogue_products._MOST_PLANS", 2)
    objects = len(cupy.cublaslt.objects)
    for m in range(1, 8):
        assert Case(emulated, m=m).run(Epilogue.RELU, Case(emulated, m=m).room())
    gc.collect()
    assert len(cupy.cublaslt.objects) <= objects, "descriptors of old plans are still there"


def test_wrong_arguments(emulated):
    case = Case(emulated)
    bias, double = fake_cupy.copied(case.bias), fake_cupy.allocate((9, 130), "float64").T
    spread = fake_cupy.allocate((260,), "float32")[::2]
    wrong = {
        r"out: expected float32 columns without gaps; got float64": (Epilogue.RELU, double),
        r"out: expected float32 columns without gaps; got float32, strides": (
            Epilogue.RELU,
            fake_cupy.allocate((130, 9), "float32"),
        ),
        r"bias: RELU takes None; got \(130,\)": (Epilogue.RELU, case.room(), bias),
        r"bias: RELU_BIAS takes \(130,\); got None": (Epilogue.RELU_BIAS, case.room()),
        r"bias: DRELU_BGRAD takes \(130,\); got \(129,\)": (
            Epilogue.DRELU_BGRAD,
            case.room(),
            bias[:129],
            case.mask,
        ),
        r"bias: expected memory without gaps": (Epilogue.RELU_BIAS, case.room(), spread),
        r"mask: RELU_BIAS takes None; got \(9, 8\)": (Epilogue.RELU_BIAS, case.room(), bias, case.mask),
        r"mask: RELU_AUX takes \(9, 8\); got \(9, 4\)": (
            Epilogue.RELU_AUX,
            case.room(),
            None,
            fake_cupy.allocate((9, 4), "float32"),
        ),
        r"mask: expected memory without gaps, from a multiple of 16": (
            Epilogue.DRELU,
            case.room(),
            None,
            fake_cupy.allocate((9, 8), "float32", shift=4),
        ),
    }
    for message, arguments in wrong.items():
        with pytest.raises(ValueError, match=message):
            case.run(*arguments)


def test_a_failure_names_product_and_shapes(emulated, cupy):
    case = Case(emulated)
    assert case.run(Epilogue.RELU, case.room())
    cupy.cublaslt._algorithms.clear()
    with pytest.raises(CublasError, match=r"RELU of a \(130, 6\) and b \(6, 9\): cublasLtMatmul failed: CUBLAS_STATUS"):
        case.run(Epilogue.RELU, case.room())
    cupy.cublaslt.handles.clear()
    with pytest.raises(CublasError, match=r"cublasLtMatmulAlgoGetHeuristic failed: CUBLAS_STATUS_NOT_INITIALIZED"):
        case.run(Epilogue.RELU_BIAS, case.room(), fake_cupy.copied(case.bias))


def test_every_status_is_an_exception(cupy):
    library = CublasLt(cupy.cublaslt)
    assert library.version() == (13, 2, 0)
    product = library.create_product(68, 0)
    for name, call in {
        "cublasLtDestroy": lambda: library.destroy(1),
        "cublasLtMatmulDescDestroy": lambda: library.destroy_product(1),
        "cublasLtMatrixLayoutDestroy": lambda: library.destroy_layout(1),
        "cublasLtMatrixLayoutCreate": lambda: library.create_layout(0, 4, 4, 3),
        "cublasLtMatmulDescSetAttribute": lambda: library.set(1, Attribute.TRANSA, 0),
    }.items():
        with pytest.raises(CublasError, match=f"{name} failed: CUBLAS_STATUS_"):
            call()
    layout = library.create_layout(1, 2, 2, 2)
    handle = library.create()
    search = handle, product, (layout,) * 4
    assert library.find_algorithm(*search, 2**20, (4,) * 4) == "CUBLAS_STATUS_NOT_SUPPORTED (15)"  # float64
    library.set(product, Attribute.EPILOGUE, Epilogue.RELU_BIAS)
    layout = library.create_layout(0, 2, 2, 2)
    search = handle, product, (layout,) * 4
    assert library.find_algorithm(*search, 2**20, (4,) * 4) == "CUBLAS_STATUS_INVALID_VALUE (7)"  # no bias
    library.set(product, Attribute.EPILOGUE, Epilogue.RELU)
    assert library.find_algorithm(*search, 0, (4,) * 4) == "CUBLAS_STATUS_NOT_SUPPORTED (15)"  # nothing found
    assert isinstance(library.find_algorithm(*search, 2**20, (4,) * 4), Algorithm)


def test_capture(emulated, cupy):
    """A first product is refused; later ones run when their graph does, on the memory of the capture."""
    case, stream = Case(emulated), cupy.cuda.Stream()
    first, second = case.room(), case.room()
    with stream:
        for _ in range(2):  # without a workspace, and then without a handle of cuBLASLt
            stream.begin_capture()
            with pytest.raises(RuntimeError, match="first product in a stream cannot be captured"):
                case.run(Epilogue.RELU_AUX, first, mask=case.mask)
            stream.end_capture()
            emulated.matmul(*case.given)
        case.run(Epilogue.RELU_AUX, first, mask=case.mask)
        first.fill(np.nan)
        stream.begin_capture()
        case.run(Epilogue.RELU_AUX, first, mask=case.mask)
        case.run(Epilogue.DRELU, second, mask=case.mask)
        graph = stream.end_capture()
    assert not np.isfinite(first.get()).any()
    graph.launch(stream)
    close(second.get(), first.get(), 6)


def test_threads_and_devices_have_handles_of_their_own(cupy):
    backends = [CupyBackend()]
    handles = cupy.cublaslt.handles

    def work(device):
        case = Case(backends[0])
        for x in (*case.given, case.mask):
            x.device_id = device
        with cupy.cuda.Device(device):
            assert case.run(Epilogue.RELU, case.room())

    work(0)
    work(1)
    assert sorted(handles.values()) == [0, 1]
    thread = threading.Thread(target=work, args=(0,))
    thread.start()
    thread.join()
    gc.collect()
    assert sorted(handles.values()) == [0, 1], "the handle of a thread that has ended is still there"
    backends.clear()
    gc.collect()
    assert handles == {}
    assert cupy.cublaslt.objects == {}


def test_siblings_share_them(emulated):
    assert emulated.at_precision("tf32").epilogues is emulated.epilogues
