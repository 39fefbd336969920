"""What is particular to numba-cpu: machine code, threads, forks, and a cache that cannot be written."""

from __future__ import annotations

import os
import platform
import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest

from fusedmlp import Network, get_backend
from fusedmlp.backends.numba_cpu.workers import threads
from processes import run_python

elementwise = pytest.importorskip("fusedmlp.backends.numba_cpu.kernels.elementwise")
compilation = pytest.importorskip("fusedmlp.backends.numba_cpu.machine.compilation")
TAGS = pytest.importorskip("fusedmlp.backends.numba_cpu.kernels.activation_formulas").TAGS


def run(code, **environment):
    """What a fresh Python prints."""
    return run_python(code, os.environ | environment)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="looks for x86 vector instructions")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("activation", ["sigmoid", "gelu"])
def test_hot_loops_are_vectorised(activation, dtype):
    """Packed arithmetic on whole vector registers in the machine code of every kernel's inner loop."""
    tag, x, rows = TAGS[activation], np.ones(64, dtype), np.ones((2, 64), dtype)
    suffix = "ps" if dtype is np.float32 else "pd"
    calls = {
        elementwise.activate_flat: (tag, x, x, None, 0, 64),
        elementwise.activate_columns: (tag, rows, x, rows, None, 0, 2),
        elementwise.times_derivative_flat: (tag, x, x, 0, 64),
        elementwise.outer_times_derivative: (tag, x[:2], x, rows, rows.copy(), 0, 2, 0, 64),
        elementwise.products_times_derivative: (tag, rows[:, :2].copy(), rows, rows, rows.copy(), 0, 2, 0, 64),
    }
    arithmetic = rf"\tv?(?:mul|add|sub|div|fn?madd\w*|max|min|cmp\w*|andn?){suffix}\t.*[xyz]mm"
    for kernel, arguments in calls.items():
        fresh = compilation.njit(**compilation.OPTIONS)(kernel.py_func)  # cached code has no assembly to look at
        fresh(*arguments)
        (assembly,) = fresh.inspect_asm().values()
        assert re.search(arithmetic, assembly), f"{kernel.__name__} has no packed {suffix} instruction"
        if activation == "sigmoid" and kernel.__name__.startswith("activate"):
            packed_division = rf"\tv?div{suffix}\t.*[xyz]mm"
            assert re.search(packed_division, assembly), f"{kernel.__name__} divides one element at a time"


def test_results_do_not_depend_on_the_number_of_threads(monkeypatch):
    backend = get_backend("numba-cpu")
    rng = np.random.default_rng(0)
    Z, b, W, dZ = (rng.normal(size=s).astype(np.float32) for s in ((300, 3001), (300, 1), (300, 1), (1, 3001)))

    def results():
        A = backend.activate(Z, "tanh", b)
        return [A, backend.fused_backward(W, dZ, A, "tanh"), backend.fused_backward(W, dZ, A.T.copy().T, "tanh")]

    expected = results()
    for count in ("1", "3", "7"):
        monkeypatch.setenv("FUSEDMLP_NUM_THREADS", count)
        threads.reset()
        assert threads.thread_count() == int(count)
        for got, want in zip(results(), expected, strict=True):
            assert np.array_equal(got, want)
    monkeypatch.undo()
    threads.reset()


@pytest.mark.parametrize(
    ("environment", "count"),
    [
        ({"FUSEDMLP_NUM_THREADS": "5", "OMP_NUM_THREADS": "1"}, 5),
        ({"FUSEDMLP_NUM_THREADS": "", "OMP_NUM_THREADS": "1"}, 1),
        ({"OMP_NUM_THREADS": "1,2"}, 1),
        ({"OMP_NUM_THREADS": "4096"}, threads.usable_cores()),
        ({}, threads.usable_cores()),
    ],
)
def test_thread_count(environment, count, monkeypatch):
    for variable in threads.ENVIRONMENT_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    threads.reset()
    assert threads.thread_count() == count
    monkeypatch.undo()
    threads.reset()


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5"])
def test_wrong_thread_counts(value, monkeypatch):
    monkeypatch.setenv("FUSEDMLP_NUM_THREADS", value)
    threads.reset()
    with pytest.raises(ValueError, match="FUSEDMLP_NUM_THREADS: expected a whole number >= 1"):
        threads.thread_count()
    monkeypatch.undo()
    threads.reset()


def test_tasks_all_finish_when_one_fails():
    done = []

    def fail():
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        threads.run([lambda: done.append(0), fail, lambda: done.append(2)])
    assert sorted(done) == [0, 2]


def test_split():
    assert threads.split(0, 10) == [(0, 0)]
    assert threads.split(5, 10) == [(0, 5)]
    for n in (1, 7, 100, 101):
        parts = threads.split(n, 3)
        assert parts[0][0] == 0
        assert parts[-1][1] == n
        assert all(stop == start for (_, stop), (start, _) in pairwise(parts))


def train(seed):
    """The weights after a training large enough for several threads."""
    rng = np.random.default_rng(seed)
    X, Y = rng.normal(size=(20, 4000)), rng.integers(0, 2, (1, 4000))
    net = Network([20, 64, 1], backend="numba-cpu", random_state=seed)
    net.fit(X, Y, epochs=2, batch_size=2000)
    return net.parameters.flat


def test_several_threads_train_at_once():
    expected = [train(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for got, want in zip(pool.map(train, range(8)), expected, strict=True):
            assert np.array_equal(got, want)


def test_blas_threads_are_given_back():
    """One thread while any of several threads computes, whichever comes and goes first; what it was, afterwards."""
    from fusedmlp.backends.numba_cpu.workers import blas

    (library,) = blas._libraries("numpy")
    at_first = library.get_num_threads()
    library.set_num_threads(2)
    before = library.get_num_threads()
    seen = []

    def enter(_):
        with blas.one_thread:
            train(0)
            seen.append(library.get_num_threads())

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(enter, range(12)))
    assert set(seen) == {1}
    assert library.get_num_threads() == before
    with pytest.raises(RuntimeError), blas.one_thread:
        raise RuntimeError
    assert library.get_num_threads() == before == 2
    library.set_num_threads(at_first)


def test_workers_of_joblib_keep_to_their_share_of_the_cores(monkeypatch):
    """loky tells its workers how many threads are theirs; what they train has the bits of any other process."""
    from joblib import Parallel, delayed, parallel_config

    for variable in threads.ENVIRONMENT_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    for inner in (1, 2):
        with parallel_config("loky", n_jobs=2, inner_max_num_threads=inner):
            counts = Parallel()(delayed(threads.thread_count)() for _ in range(2))
            trained = Parallel()(delayed(train)(seed) for seed in range(3)) if inner == 1 else []
        assert counts == [min(inner, threads.usable_cores())] * 2
        for seed, flat in enumerate(trained):
            assert np.array_equal(flat, train(seed))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_trains():
    code = """
        import os, sys, warnings
        import numpy as np
        from fusedmlp import Network
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork with threads
        X = np.random.default_rng(0).normal(size=(20, 20000)); Y = (X[:1] > 0) * 1.0
        net = Network([20, 64, 1], backend="numba-cpu", random_state=0)
        net.fit(X, Y, epochs=1, batch_size=20000)
        child = os.fork()
        if child == 0:
            net.fit(X, Y, epochs=1, batch_size=20000)
            os._exit(7)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    assert run(code) == "7"


def test_an_unwritable_cache_folder_costs_time_only(tmp_path):
    import fusedmlp

    # A package folder and a home that cannot hold a cache: numba finds no place for one.
    code = """
        from numba.core import caching
        caching.CacheImpl._locator_classes = []
        import numpy as np
        from fusedmlp import get_backend
        print(get_backend("numba-cpu").sigmoid(np.zeros((1, 2)))[0, 0])
    """
    assert run(code, PYTHONPATH=os.path.dirname(os.path.dirname(fusedmlp.__file__))) == "0.5"


def test_the_bits_are_the_same_just_compiled_and_from_the_cache(tmp_path):
    """A process that compiles calls kernels as compiled alone, a later one copies that LLVM has worked on again."""
    code = """
        import hashlib
        import numpy as np
        from fusedmlp import Adam, Network
        rng = np.random.default_rng(0)
        X, Y = rng.normal(size=(20, 3000)), rng.integers(0, 4, 3000)
        net = Network([20, 50, 33, 4], "tanh", "categorical_cross_entropy", backend="numba-cpu", random_state=0)
        net.fit(X, np.eye(4)[:, Y], epochs=2, batch_size=700, optimizer=Adam(0.01), alpha=0.1)
        print(hashlib.sha256(net.parameters.flat.tobytes() + net.forward(X).tobytes()).hexdigest())
    """
    first, second = (run(code, NUMBA_CACHE_DIR=str(tmp_path)) for _ in range(2))
    assert first == second


def test_nothing_runs_before_it_is_needed():
    code = """
        import sys, threading
        from fusedmlp import Network
        print("numba" in sys.modules, threading.active_count())
    """
    assert run(code) == "False 1"
    assert threading.active_count() < 64


# What a machine may be like ------------------------------------------------------------------------------------------


def test_without_compilation_the_backend_is_unavailable():
    code = """
        from fusedmlp import available_backends, get_backend
        print("numba-cpu" in available_backends())
        try:
            get_backend("numba-cpu")
        except RuntimeError as error:
            print(type(error).__name__, error)
    """
    assert run(code, NUMBA_DISABLE_JIT="1") == (
        "False\nBackendUnavailableError backend 'numba-cpu' is unavailable: NUMBA_DISABLE_JIT is set, and this backend "
        "is compiled code; unset NUMBA_DISABLE_JIT"
    )


USES_THE_CACHE = """
    import numpy as np
    from fusedmlp import get_backend
    backend = get_backend("numba-cpu")
    print(backend.sigmoid(np.zeros((1, 2)))[0, 0], backend.all_finite(np.zeros(3)))
"""


@pytest.fixture(scope="module")
def cache_folder(tmp_path_factory):
    """A folder with compiled code."""
    folder = tmp_path_factory.mktemp("cache")
    assert run(USES_THE_CACHE, NUMBA_CACHE_DIR=str(folder)) == "0.5 True"
    return folder


@pytest.mark.parametrize(("ending", "content"), [("nbi", b""), ("nbi", b"garbage"), ("nbc", None)])
def test_damaged_files_in_the_cache_are_made_anew(ending, content, cache_folder, tmp_path):
    """Empty, other bytes, or cut off in the middle: compiled again, and kept again."""
    folder = shutil.copytree(cache_folder, tmp_path / "cache")
    files = sorted(folder.rglob(f"*.{ending}"))
    assert files
    whole = {file: file.read_bytes() for file in files}
    for file in files:
        file.write_bytes(whole[file][: len(whole[file]) // 2] if content is None else content)
    assert run(USES_THE_CACHE, NUMBA_CACHE_DIR=str(folder)) == "0.5 True"
    made = [file for file in files if file.stat().st_size >= len(whole[file]) // 2 + 1]
    assert made, "nothing was kept again"


def control_groups(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="ascii")


V2, V1 = "sys/fs/cgroup", "sys/fs/cgroup/cpu,cpuacct"


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n", f"{V2}/cpu.max": "200000 100000\n"}, 2.0),
        ({"proc/self/cgroup": "0::/a/b\n", f"{V2}/a/b/cpu.max": "max 100000", f"{V2}/a/cpu.max": "150000 100000"}, 1.5),
        ({"proc/self/cgroup": "0::/a\n", f"{V2}/a/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/of/the/host\n", f"{V2}/cpu.max": "50000 100000\n"}, 0.5),
        (
            {
                "proc/self/cgroup": "5:memory:/x\n4:cpu,cpuacct:/x/y\n0::/\n",
                f"{V1}/x/y/cpu.cfs_quota_us": "-1\n",
                f"{V1}/x/y/cpu.cfs_period_us": "100000\n",
                f"{V1}/x/cpu.cfs_quota_us": "300000\n",
                f"{V1}/x/cpu.cfs_period_us": "100000\n",
            },
            3.0,
        ),
        ({"proc/self/cgroup": "nonsense", f"{V2}/cpu.max": "not numbers"}, None),
    ],
)
def test_quotas_of_control_groups(files, quota, tmp_path):
    control_groups(tmp_path, files)
    assert threads.cpu_quota(tmp_path) == quota


@pytest.mark.parametrize(("quota", "cores"), [(None, 64), (2.0, 2), (1.5, 2), (0.2, 1), (100.0, 64)])
def test_a_quota_bounds_the_cores(quota, cores, monkeypatch):
    monkeypatch.setattr(threads, "cpu_quota", lambda: quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)), raising=False)
    assert threads.usable_cores() == cores


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_fork_while_blas_is_held_to_one_thread():
    code = """
        import os, warnings
        from fusedmlp.backends.numba_cpu.workers import blas
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork with threads
        (library,) = blas._libraries("numpy")
        library.set_num_threads(2)
        with blas.one_thread:
            child = os.fork()
            if child == 0:
                os._exit(library.get_num_threads())
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), library.get_num_threads())
    """
    assert run(code) == "2 2"


def test_matmul_is_numpys_while_no_engine_computes(monkeypatch):
    from fusedmlp.backends.numba_cpu.workers import blas

    backend, rng = get_backend("numba-cpu"), np.random.default_rng(0)
    a, b = rng.normal(size=(64, 128)), rng.normal(size=(128, 1024))
    monkeypatch.setattr(threads, "run", lambda tasks: pytest.fail("shared"))
    np.testing.assert_array_equal(backend.matmul(a, b), a @ b)
    monkeypatch.undo()
    with backend.computing():
        assert blas.one_thread.held
        np.testing.assert_allclose(backend.matmul(a, b), a @ b, rtol=1e-12)
