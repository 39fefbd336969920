"""What surrounds the benchmark of a GPU: the calls of CuPy, the tests in a process, compute-sanitizer, its shapes."""

from __future__ import annotations

import json
import os
import stat
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from fusedmlp import Network

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # bench/ is a package of the checkout, not of the wheel

from bench.gpu import device, libraries, small_shapes, verify  # noqa: E402
from bench.gpu.results import GpuResults  # noqa: E402
from bench.peers.worker import without_paths  # noqa: E402

# The GPU's own calls --------------------------------------------------------------------------------------------------


def test_cupy_has_what_the_device_asks_of_it():
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed: pip install 'fusedmlp[cuda13]'")
    for name in ("Event", "get_elapsed_time"):
        assert hasattr(cupy.cuda, name)
    for name in ("deviceSynchronize", "memGetInfo", "getDeviceProperties", "driverGetVersion", "runtimeGetVersion"):
        assert hasattr(cupy.cuda.runtime, name)
    assert {"record", "synchronize"} <= set(dir(cupy.cuda.Event))
    assert {"free_all_blocks", "total_bytes"} <= set(dir(cupy.cuda.MemoryPool))
    for name in ("arange", "asarray", "copyto", "empty", "logaddexp", "matmul", "reciprocal", "zeros_like"):
        assert hasattr(cupy, name)
    for name in ("get_compute_type", "set_compute_type"):
        assert hasattr(cupy._core, name)
    for name in ("COMPUTE_TYPE_DEFAULT", "COMPUTE_TYPE_TF32"):
        assert hasattr(cupy._core._routines_linalg, name)


def test_cuda_device(monkeypatch):
    """Against a stand-in for CuPy: what is called, in which order, and what becomes of the answers."""
    calls = []

    class Event:
        def record(self):
            calls.append("record")

        def synchronize(self):
            calls.append("wait")

    properties = {"name": b"NVIDIA H100 80GB HBM3", "major": 9, "minor": 0, "totalGlobalMem": 85 * 10**9}
    runtime = SimpleNamespace(
        getDevice=lambda: 0,
        getDeviceProperties=lambda number: properties,
        driverGetVersion=lambda: 13010,
        runtimeGetVersion=lambda: 13000,
        memGetInfo=lambda: (7, 8),
    )
    pool = SimpleNamespace(free_all_blocks=lambda: calls.append("free"), total_bytes=lambda: 5)
    cupy = SimpleNamespace(
        cuda=SimpleNamespace(runtime=runtime, Event=Event, get_elapsed_time=lambda a, b: 250.0),
        get_default_memory_pool=lambda: pool,
    )
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(device, "_driver", lambda: "580.65.06")
    gpu = device.Cuda()
    assert gpu.describe() == {
        "name": "NVIDIA H100 80GB HBM3",
        "compute_capability": "9.0",
        "driver": "580.65.06, CUDA 13.1",
        "cuda_runtime": "13.0",
        "memory": "85.0 GB",
    }
    assert gpu.seconds(lambda: calls.append("run")) == 0.25
    assert calls == ["record", "run", "record", "wait"]
    assert (gpu.free_bytes(), gpu.held_bytes()) == (7, 5)
    assert calls[-1] == "free"
    assert device.slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
    assert verify.tests_command(Path("x"))[1:3] == ["-m", "pytest"]


def test_memory_of_the_package_is_what_the_pool_took(monkeypatch):
    held = iter([100, 350])
    own = libraries.Own(device.Host())
    monkeypatch.setattr(own.device, "held_bytes", lambda: next(held), raising=False)
    own.start_counting()
    assert own.peak_bytes() == 250


# Tests and sanitizers -------------------------------------------------------------------------------------------------


def run_tests_of(tmp_path, text, seconds=60.0):
    (tmp_path / "test_them.py").write_text(text)
    record, log = tmp_path / "tests.jsonl", tmp_path / "tests.log"
    plugin = ["-p", "no:cacheprovider", "-p", "bench.gpu.pytest_record", f"--record-to={record}"]
    options = ["-c", os.devnull, "--rootdir", str(tmp_path), *plugin]
    return verify.run_tests([sys.executable, "-m", "pytest", str(tmp_path), *options], record, log, seconds)


def test_tests_are_counted_and_named(tmp_path):
    text = """
import os, pytest
def test_good(): assert os.environ["FUSEDMLP_REQUIRE_BACKENDS"] == "cupy"
def test_bad(): assert 1 == 2
def test_left(): pytest.skip("so")
@pytest.fixture
def broken(): raise ValueError("no")
def test_broken(broken): pass
"""
    found = run_tests_of(tmp_path, text)
    assert (found["status"], found["passed"], found["failed"], found["skipped"]) == ("failed", 1, 2, 1)
    assert [name.rpartition("::")[2] for name in found["failures"]] == ["test_bad", "test_broken"]
    assert any("assert 1 == 2" in line for line in found["tail"])
    assert str(tmp_path) not in json.dumps(found["tail"])
    assert without_paths('File "/home/a/c.py", tests/cuda/x.py') == 'File "c.py", tests/cuda/x.py'
    good = run_tests_of(tmp_path, "def test_good(): pass\n")
    assert (good["status"], good["passed"], good["tail"]) == ("passed", 1, [])
    assert run_tests_of(tmp_path, "nonsense(\n")["status"] == "failed"


def test_tests_are_stopped_in_time(tmp_path):
    text = "import time\ndef test_good(): pass\ndef test_long(): time.sleep(60)\n"
    start = time.monotonic()
    found = run_tests_of(tmp_path, text, seconds=12.0)
    assert time.monotonic() - start < 40
    assert (found["status"], found["passed"], found["failed"]) == ("not finished", 1, 0)
    assert not GpuResults({"name": "X"}, tests=found).mistakes()


def test_the_selected_tests_are_there():
    for path in verify.TESTS:
        assert (ROOT / path).exists(), path
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("conformance/*.py"))
    assert "def test_every_combination(backend" in text


@pytest.mark.parametrize(
    ("text", "errors"),
    [
        ("========= ERROR SUMMARY: 0 errors", 0),
        ("========= ERROR SUMMARY: 1 error\n", 1),
        ("========= RACECHECK SUMMARY: 12 hazards displayed (10 errors, 2 warnings)", 12),
        ("Traceback", None),
    ],
)
def test_sanitizer_summaries(text, errors):
    assert verify.error_count(text) == errors


@pytest.fixture
def fake_sanitizer(tmp_path):
    """A program in place of compute-sanitizer that prints what it is told and does not run the script."""

    def make(text, code=0):
        program = tmp_path / "compute-sanitizer"
        program.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\nexit {code}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        return str(program)

    return make


@pytest.mark.skipif(os.name != "posix", reason="a shell script")
@pytest.mark.parametrize(
    ("text", "code", "tool", "status", "counts"),
    [
        ("covered 24 of 24 shapes\n========= ERROR SUMMARY: 0 errors", 0, "memcheck", "passed", False),
        ("covered 24 of 24 shapes\n========= ERROR SUMMARY: 3 errors", 0, "memcheck", "failed", True),
        ("covered 24 of 24 shapes\n========= ERROR SUMMARY: 3 errors", 0, "initcheck", "failed", False),
        ("===== Device not supported\n===== ERROR SUMMARY: 9 errors", 1, "memcheck", "does not work here", False),
        ("no summary", 0, "racecheck", "failed", False),
    ],
)  # fmt: skip
def test_sanitizer_runs(fake_sanitizer, tmp_path, text, code, tool, status, counts):
    found = verify.run_shapes(tmp_path / "log", 30.0, fake_sanitizer(text, code), tool)
    assert (found["status"], found["counts"]) == (status, counts)
    assert found["covered"] == ("24 of 24 shapes" if text.startswith("covered") else "")
    mistakes = GpuResults({"name": "X"}, sanitizer={tool: found}).mistakes()
    assert mistakes == ([f"small shapes, {tool}: failed, 3 errors"] if counts else [])


def test_verification_says_what_is_not_there(monkeypatch, tmp_path):
    assert verify.sanitizer({"PATH": str(tmp_path), "CUDA_HOME": str(tmp_path)}) is None
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "compute-sanitizer"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert verify.sanitizer({"PATH": "", "CUDA_HOME": str(tmp_path)}) == str(program)
    monkeypatch.setattr(verify, "sanitizer", lambda: None)
    monkeypatch.setattr(verify, "run_shapes", lambda log, seconds: {"status": "passed", "covered": "1 of 1 shapes"})
    said = []
    found = verify.verify(tmp_path / "logs", 10.0, tests=False, sanitizers=True, say=said.append)
    assert found["tests"] == {"status": "left out"}
    assert found["sanitizer"]["memcheck"] == {"status": "not installed"}
    assert found["sanitizer"]["no tool"]["status"] == "passed"
    assert "small shapes, memcheck: not installed" in said
    left_out = verify.verify(tmp_path / "logs", 10.0, tests=False, sanitizers=False, say=said.append)
    assert {run["status"] for run in left_out["sanitizer"].values()} == {"left out"}


def test_small_shapes_cover_everything_and_see_a_wrong_number(monkeypatch):
    shapes = list(small_shapes.shapes())
    strict = [s for s in shapes if s.precision == "strict"]
    assert {(s.dtype, s.outputs, s.activation) for s in strict} == {
        (dtype, outputs, activation)
        for dtype in ("float32", "float64")
        for outputs in (1, 3, 7)
        for activation in ("sigmoid", "tanh", "relu", "identity")
    }
    done = CliRunner().invoke(small_shapes.main, ["--backend", "numpy"])
    assert done.exit_code == 0, done.output
    assert done.output == f"covered {len(shapes)} of {len(shapes)} shapes\n"
    done = CliRunner().invoke(small_shapes.main, ["--backend", "numpy", "--seconds", "1e-9"])
    assert done.output == f"covered 1 of {len(shapes)} shapes\n"
    real = Network.forward
    monkeypatch.setattr(
        Network, "forward", lambda self, X: real(self, X) * (1.001 if self.architecture.dtype == "float32" else 1)
    )
    done = CliRunner().invoke(small_shapes.main, ["--backend", "numpy"])
    assert done.exit_code == 1
    assert "A of Shape" in str(done.exception)
