"""Which library's gemm the fused engine calls, and what wide layers make of it."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from importlib.metadata import PackageNotFoundError, PackagePath
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("numba")

from numba import njit

from compare import TOLERANCE, assert_close
from fusedmlp import Network, get_backend
from fusedmlp.backends.numba_cpu import NumbaCpuBackend
from fusedmlp.backends.numba_cpu import layout as engine_layout
from fusedmlp.backends.numba_cpu.machine import intrinsics
from fusedmlp.backends.numba_cpu.machine.compilation import OPTIONS
from fusedmlp.backends.numba_cpu.workers import gemm
from fusedmlp.cli.commands import cli
from fusedmlp.errors import BackendUnavailableError
from problems import make_problem
from processes import run_python

VARIABLE = gemm.ENVIRONMENT_VARIABLE
PREFIX = "backend 'numba-cpu' is unavailable: FUSEDMLP_BLAS is mkl, but "
NOT_INSTALLED = PREFIX + 'it is not installed: pip install "fusedmlp[mkl]"'
IN_USE = PREFIX + "another library of this process uses it, with threads of its own"


# The choice -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def mkl(monkeypatch):
    """Pretends that MKL is installed or not, in use or not; the process's own answer comes back afterwards."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(gemm, "_why_no_mkl", cache(gemm._why_no_mkl.__wrapped__))

    def pretend(installed=True, loaded=False):
        monkeypatch.setattr(gemm, "_mkl_path", lambda: Path("libmkl_rt.so.2") if installed else None)
        monkeypatch.setattr(gemm, "_is_loaded", lambda path: loaded)

    return pretend


@pytest.mark.parametrize(
    ("wanted", "installed", "loaded", "chosen"),
    [
        (None, True, False, "mkl"),
        (None, True, True, "scipy"),
        (None, False, False, "scipy"),
        (" ", True, False, "mkl"),
        ("", False, False, "scipy"),
        ("mkl", True, False, "mkl"),
        (" mkl\n", True, False, "mkl"),
        ("scipy", True, False, "scipy"),
        ("scipy", True, True, "scipy"),
        ("scipy", False, False, "scipy"),
    ],
)
def test_whose_gemm_it_is(wanted, installed, loaded, chosen, mkl, monkeypatch):
    mkl(installed, loaded)
    if wanted is not None:
        monkeypatch.setenv(VARIABLE, wanted)
    assert gemm.library() == chosen


@pytest.mark.parametrize(("installed", "loaded", "message"), [(False, False, NOT_INSTALLED), (True, True, IN_USE)])
def test_mkl_is_asked_for_in_vain(installed, loaded, message, mkl, monkeypatch):
    mkl(installed, loaded)
    monkeypatch.setenv(VARIABLE, "mkl")
    with pytest.raises(BackendUnavailableError) as error:
        gemm.library()
    assert str(error.value) == message
    reason = NumbaCpuBackend.unavailable_reason()
    assert str(BackendUnavailableError("numba-cpu", reason)) == message


@pytest.mark.parametrize("wanted", ["nonsense", "MKL", "mkl,scipy", "0"])
def test_any_other_value_is_an_error(wanted, mkl, monkeypatch):
    mkl()
    monkeypatch.setenv(VARIABLE, wanted)
    with pytest.raises(ValueError, match=f"^FUSEDMLP_BLAS: expected one of mkl, scipy; got '{wanted}'$"):
        gemm.library()
    with pytest.raises(ValueError, match="FUSEDMLP_BLAS: expected one of mkl, scipy"):
        _ = Network([3, 1], backend="numba-cpu").engine


def test_the_answer_stays_once_mkl_is_loaded(mkl):
    """By ourselves: it is not taken for another library's."""
    mkl()
    assert gemm.library() == "mkl"
    mkl(loaded=True)
    assert gemm.library() == "mkl"


def test_scipy_is_taken_without_looking_for_mkl(mkl, monkeypatch):
    mkl()
    monkeypatch.setenv(VARIABLE, "scipy")
    monkeypatch.setattr(gemm, "_mkl_path", lambda: pytest.fail("looked for MKL"))
    assert gemm.library() == "scipy"


@pytest.mark.parametrize(
    ("wanted", "installed", "shown"), [(None, True, "MKL"), (None, False, "SciPy's"), ("scipy", True, "SciPy's")]
)
def test_the_choice_is_shown(wanted, installed, shown, mkl, monkeypatch):
    mkl(installed)
    if wanted is not None:
        monkeypatch.setenv(VARIABLE, wanted)
    text = f"; in the fused engine, for wide layers: {shown}"
    assert get_backend("numba-cpu").describe()["BLAS"].endswith(text)
    result = CliRunner().invoke(cli, ["info"])
    assert result.exit_code == 0
    assert f"{text}\n" in result.output


# Where MKL is ---------------------------------------------------------------------------------------------------------


def installed_files(folder, names):
    """What importlib.metadata lists; paths are relative to `folder`."""
    paths = [PackagePath(name) for name in names]
    for path in paths:
        path.dist = SimpleNamespace(locate_file=lambda path: folder / path)
    return paths


@pytest.mark.parametrize(
    "name", ["../../libmkl_rt.so.2", "../../libmkl_rt.so", "../../libmkl_rt.2.dylib", "../../Library/bin/mkl_rt.2.dll"]
)
def test_mkl_is_found_in_its_package(name, tmp_path, monkeypatch):
    packages = tmp_path / "python" / "packages"
    others = ["mkl/__init__.py", "../../libmkl_core.so.2", "../../Library/lib/mkl_rt.lib"]
    for file in [*others, name]:
        (packages / file).resolve().parent.mkdir(parents=True, exist_ok=True)
        (packages / file).resolve().touch()
    packages.mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr(gemm, "files", lambda package: installed_files(packages, [*others, name]))
    assert gemm._mkl_path() == (packages / name).resolve()
    monkeypatch.setattr(gemm, "files", lambda package: installed_files(packages, others))
    assert gemm._mkl_path() is None


def test_a_package_whose_files_are_gone_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(gemm, "files", lambda package: installed_files(tmp_path, ["libmkl_rt.so.2"]))
    assert gemm._mkl_path() is None


def test_no_package_no_path(monkeypatch):
    def missing(package):
        raise PackageNotFoundError(package)

    monkeypatch.setattr(gemm, "files", missing)
    assert gemm._mkl_path() is None
    monkeypatch.setattr(gemm, "files", lambda package: None)  # installed without a list of its files
    assert gemm._mkl_path() is None


def test_what_is_loaded_is_known_and_asking_loads_nothing(tmp_path):
    import scipy.linalg.cython_blas as loaded

    path = Path(loaded.__file__)
    assert gemm._is_loaded(path)
    copy = tmp_path / f"other{''.join(path.suffixes)}"
    copy.write_bytes(path.read_bytes())
    assert not gemm._is_loaded(copy)
    assert not gemm._is_loaded(copy)
    assert not gemm._is_loaded(tmp_path / "missing.so")


# The routine ----------------------------------------------------------------------------------------------------------


def test_mkls_routine_has_the_right_precision(monkeypatch):
    routines = {name: ctypes.CFUNCTYPE(None)(lambda: None) for name in ("sgemm_", "dgemm_")}
    monkeypatch.setattr(gemm, "_mkl", lambda: SimpleNamespace(**routines))
    for dtype, name in (("float32", "sgemm_"), ("float64", "dgemm_")):
        address = ctypes.cast(routines[name], ctypes.c_void_p).value
        assert gemm.gemm.__wrapped__(dtype, "mkl") == (address, "MKL")


@njit(**OPTIONS)
def multiply(routine, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):
    """BLAS's own interface: column-major, leading dimensions."""
    intrinsics.gemm(routine, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc)


def check_routine(chosen):
    """alpha op(A) op(B) + beta C of parts of larger matrices, of whole numbers: exact."""
    for dtype, trans_a, trans_b in product(("float32", "float64"), (False, True), (False, True)):
        rng = np.random.default_rng(0)
        m, n, k, number = 5, 4, 3, np.dtype(dtype).type
        A, B, C = (
            np.asfortranarray(rng.integers(-9, 10, shape).astype(dtype))
            for shape in ((k + 1, m + 1) if trans_a else (m + 1, k + 1), (9, 9), (m + 2, n + 1))
        )
        left = (A.T if trans_a else A)[:m, :k]
        right = (B.T if trans_b else B)[:k, :n]
        expected = C.copy()
        expected[:m, :n] = 2 * left @ right - C[:m, :n]
        multiply(
            gemm.gemm(dtype, chosen).address, trans_a, trans_b, m, n, k, number(2), A.ctypes.data, A.shape[0],
            B.ctypes.data, B.shape[0], number(-1), C.ctypes.data, C.shape[0],
        )  # fmt: skip
        np.testing.assert_array_equal(C, expected, f"{chosen}, {dtype}, {trans_a}, {trans_b}")


def test_scipys_routine():
    check_routine("scipy")
    assert {gemm.gemm(dtype, "scipy").library for dtype in TOLERANCE} == {"SciPy"}


# Wide layers ----------------------------------------------------------------------------------------------------------

BLOCKED_BYTES = 64
"""In place of the engine's limit: 16 inputs of float32 and 8 of float64 are the most that BLAS leaves to others."""
SIZES = [[30, 64, 1], [300, 20, 4], [40, 50, 60, 5], [30, 8, 20, 3], [50, 1], [50, 3]]


def arranged(X, layout):
    """The same numbers: rows contiguous, samples contiguous, or neither."""
    if layout == "gaps":
        larger = np.full((2 * X.shape[0], 3 * X.shape[1]), np.nan, X.dtype)
        larger[::2, ::3] = X
        return larger[::2, ::3]
    return np.asarray(X, order=layout)


def check_wide_layers(sizes, m, dtype, layout, library):
    """Loss, gradients and outputs against the numpy backend in float64."""
    problem = make_problem(
        "tanh", "squared_error", weighted=True, dtype=dtype, backend="numba-cpu", m=m, sizes=sizes, seed=m
    )
    net = problem.net
    assert net.engine.kind == "fused"
    assert not net.engine._blocked[0], "a layer that BLAS should do"
    assert gemm.gemm(dtype, gemm.library()).library == library
    other = Network(sizes, "tanh", "squared_error", dtype="float64", backend="numpy")
    other.parameters.flat[...] = net.parameters.flat
    X, Y, weight = (np.asarray(x, np.float64) for x in (problem.X, problem.Y, problem.sample_weight))
    J_expected, expected = other.loss_and_gradients(X, Y, weight, alpha=0.3)
    problem.X = arranged(problem.X, layout)
    J, gradients = net.loss_and_gradients(problem.X, problem.Y, problem.sample_weight, alpha=0.3)
    assert pytest.approx(J_expected, rel=TOLERANCE[dtype]) == J
    for layer in range(len(sizes) - 1):
        assert_close(gradients.weights[layer], expected.weights[layer], f"dW{layer + 1}")
        assert_close(gradients.biases[layer], expected.biases[layer], f"db{layer + 1}")
    assert_close(net.forward(problem.X), other.forward(X), "A")


@pytest.fixture
def by_scipy(monkeypatch):
    monkeypatch.setenv(VARIABLE, "scipy")
    monkeypatch.setattr(engine_layout, "_BLOCKED_BYTES", BLOCKED_BYTES)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("m", [1, 5, 33, 1500])
@pytest.mark.parametrize("sizes", SIZES)
def test_wide_layers_by_scipy(sizes, m, dtype, by_scipy):
    for layout in ("C", "F", "gaps"):
        check_wide_layers(sizes, m, dtype, layout, "SciPy")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sizes", SIZES)
def test_tiles_of_wide_layers_add_up(sizes, dtype, by_scipy):
    """So many samples that every slot has several tiles."""
    check_wide_layers(sizes, 40_000, dtype, "C", "SciPy")


@pytest.mark.parametrize("batch_size", [1, 37, 1500])
def test_shuffled_batches_of_wide_layers(batch_size, by_scipy):
    """Samples gathered from anywhere."""
    results = []
    for backend in ("numba-cpu", "numpy"):
        problem = make_problem("tanh", backend=backend, m=1500 if batch_size > 1 else 100, sizes=[40, 20, 3])
        problem.net.fit(problem.X, problem.Y, epochs=2, batch_size=batch_size, random_state=0)
        results.append(problem.net.parameters.flat)
    assert_close(*results, tolerance=1e-9)


# The real MKL ---------------------------------------------------------------------------------------------------------

needs_mkl = pytest.mark.skipif(gemm._mkl_path() is None, reason='MKL is not installed: pip install "fusedmlp[mkl]"')


def run(code, **environment):
    """What a fresh Python prints; it finds this file."""
    folders = [str(folder) for folder in Path(__file__).parents[:2]]
    tests = os.pathsep.join(filter(None, [*folders, os.environ.get("PYTHONPATH")]))
    ours = {name: value for name, value in os.environ.items() if name != VARIABLE} | {"PYTHONPATH": tests}
    return run_python(code, ours | environment)


def check_everything(chosen):
    """In a process of its own: the routine and wide layers, by the library that the environment names."""
    assert gemm.library() == chosen  # before MKL is loaded, as the engine asks
    engine_layout._BLOCKED_BYTES = BLOCKED_BYTES
    check_routine(chosen)
    for sizes, m, dtype in product(SIZES, (1, 33, 1500), TOLERANCE):
        for layout in ("C", "F", "gaps"):
            check_wide_layers(sizes, m, dtype, layout, {"mkl": "MKL", "scipy": "SciPy"}[chosen])


@pytest.mark.parametrize("chosen", [pytest.param("mkl", marks=needs_mkl), "scipy"])
def test_wide_layers_in_a_fresh_process(chosen):
    code = f"import test_gemm; test_gemm.check_everything({chosen!r}); print('equal')"
    assert run(code, FUSEDMLP_BLAS=chosen) == "equal"


@needs_mkl
def test_mkl_starts_no_threads():
    code = """
        from fusedmlp.backends.numba_cpu.workers import gemm
        print(gemm.library(), gemm.gemm("float32", "mkl").library, gemm._mkl().MKL_Get_Max_Threads(), gemm.library())
    """
    assert run(code, MKL_NUM_THREADS="2", MKL_DYNAMIC="FALSE") == "mkl MKL 1 mkl"


@needs_mkl
def test_mkl_of_another_library_is_left_to_it():
    code = """
        import ctypes, os
        from fusedmlp import Network
        from fusedmlp.backends.numba_cpu.workers import gemm
        other = ctypes.CDLL(str(gemm._mkl_path()))
        before = other.MKL_Get_Max_Threads()
        print(gemm.library(), Network([5000, 1], backend="numba-cpu").engine.kind)
        assert other.MKL_Get_Max_Threads() == before
        os.environ["FUSEDMLP_BLAS"] = "mkl"
        try:
            gemm.library()
        except RuntimeError as error:
            print(error)
    """
    assert run(code, MKL_NUM_THREADS="2", MKL_DYNAMIC="FALSE") == f"scipy fused\n{IN_USE}"
