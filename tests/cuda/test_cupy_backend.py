"""CupyBackend beyond its primitives: whether it can run, what it says of itself, arrays in and out, whole trainings."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import types

import numpy as np
import pytest
from harness import fake_cupy

from fusedmlp import BackendUnavailableError, Gradients, Network, Parameters
from fusedmlp.backends import selection
from fusedmlp.backends.cupy import CupyBackend, kernel_sources
from fusedmlp.backends.cupy.cuda_tables import CUDA_ACTIVATIONS, CUDA_LOSSES
from fusedmlp.model.activations import HIDDEN_ACTIVATIONS
from fusedmlp.model.architecture import Architecture


def reason_with(monkeypatch, module):
    fake_cupy.install(monkeypatch, module)
    reason = CupyBackend.unavailable_reason()
    assert reason is None or "\n" not in reason
    assert reason is None or len(reason) < 400
    return reason


class TestUnavailable:
    def test_not_installed(self, monkeypatch):
        reason = reason_with(monkeypatch, None)
        assert "not installed" in reason
        assert 'pip install "fusedmlp[cuda13]"' in reason
        assert "cuda12" in reason
        monkeypatch.setattr(selection, "_instances", {})
        with pytest.raises(BackendUnavailableError, match=r"backend 'cupy' is unavailable: .*pip install"):
            Network([2, 1], backend="cupy")

    def test_no_driver(self, monkeypatch):
        reason = reason_with(monkeypatch, fake_cupy.make(driver=0))
        assert "finds no NVIDIA driver (cudaErrorInsufficientDriver): it needs an NVIDIA GPU" in reason

    def test_driver_too_old(self, monkeypatch):
        reason = reason_with(monkeypatch, fake_cupy.make(driver=12040))
        assert "driver is for CUDA 12.4, CuPy for CUDA 13.2: update it, or" in reason
        assert 'pip uninstall cupy-cuda13x and pip install "fusedmlp[cuda12]"' in reason
        assert "pip" not in reason_with(monkeypatch, fake_cupy.make(driver=11080))

    def test_no_gpu(self, monkeypatch):
        assert "cudaErrorNoDevice" in reason_with(monkeypatch, fake_cupy.make(devices=0))

    def test_libraries_missing(self, monkeypatch):
        cupy = fake_cupy.make()
        del cupy.cublas
        reason = reason_with(monkeypatch, cupy)
        assert "a product by cuBLAS failed (RuntimeError: cuBLAS for CUDA 13 (libcublas.so.13) cannot be" in reason
        assert 'pip install "fusedmlp[cuda13]"' in reason

    def test_kernel_does_not_compile(self, monkeypatch):
        class CompileException(Exception):  # noqa: N818 - CuPy's name
            pass

        def raw_module(**kwargs):
            raise CompileException("/tmp/kern.cu(3): warning: unused\n/tmp/kern.cu(7): error: expected a ;\n1 error")

        cupy = fake_cupy.make()
        cupy.RawModule = raw_module
        reason = reason_with(monkeypatch, cupy)
        assert (
            "compiling and running kernels/activations.cu failed (CompileException: /tmp/kern.cu(7): error:" in reason
        )

    def test_wrong_numbers(self, monkeypatch, compiler):
        cupy = fake_cupy.make()
        right = cupy.RawModule

        def raw_module(code, options):
            return right(code=code.replace("T(1) + exp(-z)", "T(2) + exp(-z)"), options=options)

        cupy.RawModule = raw_module
        assert "the sigmoid of" in reason_with(monkeypatch, cupy)
        cupy = fake_cupy.make()
        cupy.cublas.multiply = lambda a, b: np.float32(1.1) * (a @ b)
        assert "a sum of products" in reason_with(monkeypatch, cupy)

    @pytest.mark.parametrize("error", [ImportError("libcupy.so: undefined symbol"), OSError("no such device")])
    def test_broken_installation(self, monkeypatch, error):
        def find_spec(name, path=None, target=None):
            if name == "cupy":
                raise error

        monkeypatch.delitem(sys.modules, "cupy", raising=False)
        monkeypatch.setattr(sys, "meta_path", [types.SimpleNamespace(find_spec=find_spec), *sys.meta_path])
        reason = CupyBackend.unavailable_reason()
        assert "CuPy does not import" in reason
        assert str(error) in reason

    def test_success_is_remembered_and_failure_is_not(self, cupy):
        works, cupy.cublas = cupy.cublas, None
        assert "failed" in CupyBackend.unavailable_reason()
        cupy.cublas = works
        assert CupyBackend.unavailable_reason() is None
        n_launches = len(cupy.launches)
        assert CupyBackend.unavailable_reason() is None
        assert len(cupy.launches) == n_launches

    def test_this_machine(self):
        """The real CuPy, in a process of its own: without a driver it says so; with a GPU there is nothing to say."""
        pytest.importorskip("cupy", reason="CuPy is not installed")
        code = "from fusedmlp.backends.selection import unavailable_reason; print(unavailable_reason('cupy'))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        reason = done.stdout.strip()
        assert reason == "None" or "driver" in reason or "GPU" in reason or "pip install" in reason
        assert done.stdout.count("\n") == 1
        assert done.stderr == ""


def test_import_touches_nothing():
    code = (
        "import sys, fusedmlp.backends.cupy as b; b.CupyBackend(); b.CupyBackend.workspace_bytes; "
        "print([m for m in sys.modules if m.split('.')[0] in ('cupy', 'cuda', 'cupy_backends')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_selection_by_name(cupy):
    assert selection.get_backend("cupy,numpy").name == "cupy"
    assert selection.get_backend("auto").name == "cupy"
    assert "cupy" in selection.available_backends()
    assert selection.get_backend("cupy") is selection.get_backend("cupy")


def test_description(emulated):
    described = emulated.describe()
    assert described["device"] == "GPU 0, CPU in place of a GPU, compute capability 9.0"
    assert described["memory"] == "7.0 GB of 8.0 GB free"
    assert described["BLAS"] == "cuBLAS 13.2.0"
    assert described["precision"] == "strict: float32"
    assert described["versions"] == "cupy 14.2.0, CUDA runtime 13.2"
    for file, digest in kernel_sources.hashes().items():
        assert f"{file} {digest[:8]}" in described["kernels"]


class TestArrays:
    def test_no_copy_of_what_is_there(self, emulated):
        x = fake_cupy.copied(np.ones((2, 3), np.float32))
        assert emulated.asarray(x) is x
        assert emulated.asarray(x, dtype="float32") is x
        assert emulated.asarray(x, dtype="float64").dtype == np.float64

    def test_arrays_of_other_libraries_are_used_where_they_are(self, emulated):
        """Anything with __cuda_array_interface__; results stay on the GPU."""
        x = fake_cupy.copied(np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3))
        other = types.SimpleNamespace(__cuda_array_interface__=x.__cuda_array_interface__, keep=x)
        assert emulated.owns(other)
        native = emulated.asarray(other)
        assert native.data.ptr == x.data.ptr
        net = Network([2, 3, 1], backend=emulated, random_state=0)
        A = net.forward(other)
        assert isinstance(A, fake_cupy.ndarray)
        expected = Network([2, 3, 1], backend="numpy", random_state=0).forward(x.get())
        np.testing.assert_allclose(A.get(), expected, rtol=1e-6)
        _, gradients = net.loss_and_gradients(other, [1, 0, 1])
        assert isinstance(gradients.flat, fake_cupy.ndarray)

    def test_synchronize(self, emulated, cupy):
        with cupy.cuda.Stream() as stream:
            emulated.synchronize()
        assert stream.synchronized == 1

    def test_bad_samples_on_the_gpu(self, emulated):
        net = Network([2, 3, 1], backend=emulated)
        X = np.ones((2, 5))
        X[1, 3] = np.nan
        with pytest.raises(ValueError, match=r"X: expected finite numbers; got nan at row 1, column \(sample\) 3"):
            net.forward(fake_cupy.copied(X))
        with pytest.raises(ValueError, match="labels 0 or 1; got 2.0 at sample 0"):
            net.loss(fake_cupy.copied(np.ones((2, 5))), fake_cupy.copied(2 * np.ones((1, 5))))


@pytest.mark.usefixtures("never_resident")
@pytest.mark.parametrize(
    ("activation", "n_outputs"),
    [
        *itertools.product(CUDA_ACTIVATIONS, (1, 3, 20)),
        *((activation, 1) for activation in HIDDEN_ACTIVATIONS if activation not in CUDA_ACTIVATIONS),
    ],
)
def test_training_equals_the_numpy_backend(cupy, activation, n_outputs):
    """Ten steps of Adam from the registry's own cupy, with every convenience of `fit`."""
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(5, 40)), rng.integers(0, 2, size=(n_outputs, 40))

    def train(backend):
        net = Network([5, 7, 4, n_outputs], activation, dtype="float64", backend=backend, random_state=0)
        history = net.fit(
            X, Y, "adam", epochs=5, batch_size=16, validation_fraction=0.2, early_stopping=True, schedule="cosine"
        )
        return history, net.backend.to_numpy(net.parameters.flat), net.forward(X)

    (history, flat, A), (expected_history, expected_flat, expected_A) = train("cupy"), train("numpy")
    np.testing.assert_allclose(history.loss, expected_history.loss, rtol=1e-10)
    np.testing.assert_allclose(history.validation_loss, expected_history.validation_loss, rtol=1e-10)
    np.testing.assert_allclose(flat, expected_flat, rtol=0, atol=1e-10)
    np.testing.assert_allclose(A, expected_A, rtol=0, atol=1e-10)
    if activation not in CUDA_ACTIVATIONS:
        return  # from array operations
    # The kernels did the work.
    kinds = {name.removesuffix("_packed").removesuffix("_strided").removesuffix("_float64") for name in cupy.launches}
    assert {f"activate_{activation}", "adam"} <= kinds
    top = {1: "hidden_layer_1", 3: "hidden_layer_4", 20: "times_derivative"}[n_outputs]
    if activation != "identity":
        lower = "fused_backward_4" if n_outputs == 20 else "lower_layer_4"
        assert {f"{top}_{activation}", f"{lower}_{activation}"} <= kinds
    elif n_outputs <= 16:
        assert {f"{top}_identity", "losses", "outputs", "sum_rows"} <= kinds


@pytest.mark.parametrize(
    ("sizes", "dtype", "path"),
    [
        ((16, 1025, 4), "float32", "middle"),
        ((500, 513, 1), "float64", "middle"),
        ((5, 8, 17), "float32", None),
        ((5, 1), "float32", None),
        ((5, 1024, 4), "float32", "narrow"),
        ((64, 1024, 1), "float64", "narrow"),
    ],
)
def test_engines_say_what_they_are(emulated, sizes, dtype, path):
    loss = "binary_cross_entropy"
    engine = emulated.engine(Architecture(sizes, loss=loss, dtype=dtype))
    assert (engine.kind, getattr(engine, "path", None)) == ("fused" if path else "composed", path)
    assert emulated.engine(Architecture(sizes, loss=loss, dtype=dtype), fused=False).kind == "composed"


def variations():
    """With and without biases, weights and L2, in one chunk and in several."""
    return itertools.product((True, False), (True, False), (0.0, 0.3), (None, 32))


@pytest.mark.parametrize("sizes", [(3, 6, 2), (4, 9, 7, 3), (5, 30, 10), (3, 6, 1)])
def test_the_fused_engine_equals_the_composed_one(emulated, shuffled, sizes):
    """Every loss, and all variations between them."""
    losses = [loss for loss in CUDA_LOSSES if loss != "categorical_cross_entropy" or sizes[-1] > 1]
    for loss, variation in zip(itertools.cycle(losses), variations(), strict=False):
        compare_engines(emulated, loss, sizes, [variation])


def compare_engines(emulated, loss, sizes, variations):
    """The passes of the fused engine and of the composed one."""
    rng = np.random.default_rng(0)
    X, labels = rng.normal(size=(sizes[0], 70)), rng.integers(0, sizes[-1], 70)
    Y = np.eye(sizes[-1])[:, labels] if loss == "categorical_cross_entropy" else rng.integers(0, 2, (sizes[-1], 70))
    X, Y = (fake_cupy.copied(np.asarray(x, float)) for x in (X, Y))
    for bias, weighted, alpha, chunk in variations:
        architecture = Architecture(sizes, "tanh", loss, bias, "float64")
        flat = fake_cupy.copied(rng.normal(size=architecture.n_parameters))
        w = fake_cupy.copied(rng.uniform(0, 2, (1, 70))) if weighted else None
        results = []
        for fused in (True, False):
            engine = emulated.engine(architecture, fused=fused)
            engine._chunk = chunk or engine._chunk
            gradients = Gradients(architecture, fake_cupy.allocate(flat.shape, "float64"))
            parameters = Parameters(architecture, flat)
            J = engine.loss_and_gradients(parameters, X, Y, gradients, w, alpha)
            assert pytest.approx(engine.loss(parameters, X, Y, w, alpha), rel=1e-13) == J
            results.append((J, gradients.flat.get(), engine.forward(parameters, X).get()))
        for got, expected in zip(*results, strict=True):
            np.testing.assert_allclose(got, expected, rtol=0, atol=1e-11 * np.abs(expected).max())


def test_threads_may_share_the_backend(emulated):
    """Several fits at once on one backend; each network by itself."""
    X, Y = np.random.default_rng(0).normal(size=(3, 20)), np.arange(20) % 2
    results = {}

    def fit(seed):
        net = Network([3, 4, 1], backend=emulated, random_state=seed)
        net.fit(X, Y, epochs=3)
        results[seed] = net.backend.to_numpy(net.parameters.flat)

    threads = [threading.Thread(target=fit, args=(seed % 2,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(2):
        net = Network([3, 4, 1], backend="numpy", random_state=seed)
        net.fit(X, Y, epochs=3)
        np.testing.assert_allclose(results[seed], net.parameters.flat, rtol=1e-4)
