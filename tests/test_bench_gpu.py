"""The benchmark of a GPU without one: its parts, their time limits, the record of the tests, what is published."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # bench/ is a package of the checkout, not of the wheel

from bench.peers import device_tests, gpu, gpu_run, processes, rates, registry, session, verify, warm_up  # noqa: E402
from bench.peers import measure as peers_measure  # noqa: E402
from bench.peers.cases import Case  # noqa: E402
from bench.peers.device import Cpu, Cuda  # noqa: E402
from bench.peers.gpu_cases import Group  # noqa: E402
from bench.peers.results import Entry, Measured, Results, load, save  # noqa: E402
from fusedmlp.engines.composed import ComposedEngine  # noqa: E402
from fusedmlp.model.activations import HIDDEN_ACTIVATIONS  # noqa: E402
from fusedmlp.model.losses import LOSSES  # noqa: E402

STEP, EPOCH = Case("step", (5, 6, 1), 70), Case("epoch", (5, 6, 1), 70, batch_size=3)


class HostAsGpu(Cpu):
    """The CPU with the schedule of a GPU."""

    kind = "cuda"
    backend = "numpy"


class LocalWorker:
    """A `Worker` without a process: the session runs here."""

    pid = None
    versions = "here"

    def __init__(self, name, kind, threads):
        self.arguments = name, "cpu" if name == "jax" else kind, threads
        self.session = None

    def begin(self):
        self.session = self.session or session.Session(*self.arguments)

    def ask(self, method, *arguments):
        return getattr(self.session, method)(*arguments)

    def stop(self):
        self.session = None


@pytest.fixture
def host(monkeypatch):
    """The host in place of a GPU; libraries run in this process; small shapes run on numpy."""
    monkeypatch.setattr(Cpu, "forget_peak", lambda self: None)
    monkeypatch.setattr(peers_measure, "Worker", LocalWorker)
    monkeypatch.setattr(peers_measure, "TURN_SECONDS", {"cpu": 1e-4, "cuda": 1e-4})
    monkeypatch.setitem(session.DEVICES, "cuda", HostAsGpu)
    monkeypatch.setattr(registry.peer_class("fused"), "fused", False)  # numpy has no fused engine
    for sizes in (rates.COPY_BYTES, rates.PRODUCT_SIZE, rates.PRIMITIVE_SHAPE):
        monkeypatch.setitem(sizes, "cuda", sizes["cpu"])
    monkeypatch.setattr(verify, "sanitizer", lambda: None)
    real = verify.run_limited
    monkeypatch.setattr(
        verify, "run_limited", lambda command, *rest: real([*command, "--backend", "numpy"], *rest), raising=True
    )
    return HostAsGpu()


GROUPS = {
    "small": Group((STEP, replace(STEP, precision="medium"), replace(STEP, dtype="float64"))[:2], 2.0),
    "float64": Group((replace(STEP, dtype="float64"),)),
    "epoch": Group((EPOCH,), 5.0, "jax"),
}


def work_in(folder, **more):
    wanted = verify.Wanted(tests=(), tools=("memcheck",), kernels=False)
    return gpu.Work(GROUPS, ["fused", "composed", "jax"], 200.0, 2, wanted, unfinished=folder, **more)


@pytest.mark.gpu_command
def test_run_and_report(host, tmp_path):
    found = gpu_run.run(host, {"device": "Test"}, work_in(tmp_path), print)
    assert found.mistakes() == []
    assert found.sanitizer["no tool"]["status"] == "passed", found.sanitizer
    assert {part["name"]: part["status"] for part in found.parts} == {
        "compiling kernels": "left out",
        "small shapes": "finished",
        "tests": "left out",
        "compute-sanitizer": "left out",
        "timings": "finished",
    }
    assert [m.case for m in found.measured] == [case for group in GROUPS.values() for case in group.cases]
    assert all(m.entry("fused") and m.entry("jax") for m in found.measured if m.case.precision == "strict")
    gpu.write(found, tmp_path)
    text = (tmp_path / "gpu.md").read_text()
    for wanted in ("| 5-6-1, m = 70 | ", "| 5-6-1, m = 70, float64 | ", "batches of 3", "fused_backward", "### Parts"):
        assert wanted in text
    done = CliRunner().invoke(gpu.main, ["--report", str(tmp_path / "gpu.json")])
    assert done.exit_code == 0
    assert done.output == text


def test_a_run_whose_time_is_over_is_red(host, monkeypatch, tmp_path):
    work = replace(work_in(tmp_path), wanted=verify.Wanted((), (), False, False))
    monkeypatch.setattr(gpu_run, "Clock", lambda limit: peers_measure.Clock(3.0))
    found = gpu_run.run(host, {"device": "Test"}, work, print)
    assert found.parts[-1]["status"] == "not finished"
    (mistake,) = found.mistakes()
    assert mistake.startswith("timings: did not come to its end: its time was over before 4 cases: 5-6-1, m = 70")
    gpu.write(found, tmp_path)
    assert "| timings | **not finished** |" in (tmp_path / "gpu.md").read_text()


def test_wrong_results_of_the_package_are_not_published(host, monkeypatch, tmp_path):
    real = ComposedEngine.loss_and_gradients
    monkeypatch.setattr(ComposedEngine, "loss_and_gradients", lambda self, *args: 1.01 * real(self, *args))
    work = replace(work_in(tmp_path), groups={"small": GROUPS["small"]}, wanted=verify.Wanted((), (), False, False))
    found = gpu_run.run(host, {"device": "Test"}, work, print)
    assert any("wrong" in fault for fault in found.not_verified())
    assert any(mistake.startswith("fused at 5-6-1") for mistake in found.mistakes())
    assert gpu.place(found, None, True, tmp_path)[0] == tmp_path / "test"


PASSED = {"status": "passed", "counts": False, "errors": 0}
VERIFIED = Results(
    {"device": "NVIDIA H200", "versions": {}},
    tests={"status": "passed"},
    sanitizer={"no tool": PASSED, "memcheck": PASSED, "racecheck": {"status": "not installed"}},
    measured=[Measured(STEP, [Entry("fused", seconds=1.0, rounds=[1.0])], 0.1)],
)


@pytest.mark.parametrize(
    "fault",
    [
        {"tests": {"status": "failed", "failed": 1}},
        {"tests": {"status": "not finished"}},
        {"tests": {}},
        {"sanitizer": {"no tool": PASSED, "memcheck": {"status": "failed", "counts": True, "errors": 1}}},
        {"sanitizer": {"no tool": {"status": "left out"}}},
        {"sanitizer": {"no tool": {"status": "not finished", "counts": False}}},
        {"primitives": {"wrong": {"reason": "sigmoid"}}},
        {"measured": [Measured(STEP, [Entry("composed", "wrong", "dW1")], 0.1)]},
    ],
    ids=lambda fault: next(iter(fault)),
)
def test_only_verified_results_are_published(fault, tmp_path):
    assert gpu.place(VERIFIED, None, True, tmp_path) == (gpu.PUBLISHED / "nvidia-h200", [])
    assert gpu.place(VERIFIED, None, False, tmp_path)[0] == tmp_path / "nvidia-h200"
    target, faults = gpu.place(replace(VERIFIED, **fault), None, True, tmp_path)
    assert target == tmp_path / "nvidia-h200"
    assert len(faults) == 1


def test_parts_that_were_running_are_named():
    def parts(*statuses):
        names = (gpu_run.KERNELS, gpu_run.SHAPES, gpu_run.TESTS, gpu_run.SANITIZERS, gpu_run.TIMINGS)
        return [{"name": n, "status": s, "seconds": 1.0, "limit": 9.0} for n, s in zip(names, statuses, strict=True)]

    stopped = replace(VERIFIED, parts=parts("finished", "running", "running", "left out", "running"))
    gpu.end(stopped, None)
    assert [text.partition(":")[0] for text in stopped.mistakes()] == ["small shapes", "tests", "timings"]
    assert stopped.mistakes()[2].endswith("the time of the run was over, with 1 cases measured")
    died = replace(VERIFIED, parts=parts(*4 * ["finished"], "running"))
    gpu.end(died, -11)
    assert "ended with exit status -11" in died.mistakes()[0]
    fine = replace(VERIFIED, parts=parts(*5 * ["finished"]))
    gpu.end(fine, 0)
    assert fine.mistakes() == []


@pytest.mark.parametrize(("code", "reason"), [(None, "the time of the run was over"), (-9, "exit status -9")])
def test_the_command_reports_what_was_known_when_the_run_ended(monkeypatch, tmp_path, code, reason):
    def stopped(function, arguments, seconds):
        (work,) = arguments
        assert function is gpu_run.in_process
        assert seconds < work.limit
        part = {"name": gpu_run.TIMINGS, "status": "running", "seconds": 0.0, "limit": 9.0}
        save(replace(VERIFIED, parts=[part]), work.partial)
        return code

    monkeypatch.setattr(gpu, "call_limited", stopped)
    monkeypatch.setattr(gpu, "Work", partial(gpu.Work, unfinished=tmp_path))
    done = CliRunner().invoke(gpu.main, ["--out", str(tmp_path / "out")])
    assert done.exit_code == 1
    assert f"wrong: timings: did not come to its end: {reason}" in done.output.replace("its process ended with ", "")
    assert "| timings | **not finished** |" in (tmp_path / "out" / "nvidia-h200" / "gpu.md").read_text()
    monkeypatch.setattr(gpu, "call_limited", lambda *arguments: code)
    done = CliRunner().invoke(gpu.main, [])
    assert done.exit_code == 1
    assert "without results" in done.output


def sleeps_with_a_child(path):
    """For `call_limited`: a process with a grandchild in a session of its own, both of which never end."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    Path(path).write_text(f"{os.getpid()} {child.pid}")
    time.sleep(600)


@pytest.mark.gpu_command
def test_a_process_that_hangs_is_ended_with_its_children(tmp_path):
    path, start = tmp_path / "pids", time.monotonic()
    assert processes.call_limited(sleeps_with_a_child, (str(path),), 20.0) is None
    assert time.monotonic() - start < 40
    for pid in map(int, path.read_text().split()):
        state = Path(f"/proc/{pid}/stat")
        assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.gpu_command
def test_no_gpu_is_told(tmp_path):
    reason = Cuda.unavailable_reason()
    if reason is None:
        pytest.skip("there is a GPU")
    done = subprocess.run(
        [sys.executable, "-m", "bench.peers.gpu", "--quick"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == gpu.NO_GPU, done.stderr
    assert f"no GPU can be used: {reason}" in done.stderr


SOME_TESTS = """
import os, time
import pytest

@pytest.mark.parametrize("n", range(6))
def test_cupy_passes(n):
    from cupy.cuda import compiler
    if n == 0:
        compiler.nvrtc.compileProgram(0.25)

def test_cupy_fails():
    assert False

def test_cupy_is_skipped():
    pytest.skip("no")

def test_cupy_hangs():
    time.sleep(600)

@pytest.mark.alone
def test_cupy_alone():
    assert "PYTEST_XDIST_WORKER" not in os.environ
    assert "CUPY_GPU_MEMORY_LIMIT" not in os.environ

def test_others_do_not_run():
    assert False
"""


@pytest.fixture
def suite(tmp_path, monkeypatch):
    """A folder of tests, and a cupy whose compiler takes as long as it is told."""
    fake = tmp_path / "cupy" / "cuda"
    fake.mkdir(parents=True)
    (fake.parent / "__init__.py").touch()
    (fake / "__init__.py").touch()
    (fake / "compiler.py").write_text("import time\nclass nvrtc:\n    compileProgram = staticmethod(time.sleep)\n")
    (tmp_path / "test_some.py").write_text(SOME_TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = alone: by itself\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    monkeypatch.setattr(device_tests, "TEST_SECONDS", 8.0)
    words = device_tests.command((str(tmp_path / "test_some.py"),), "cupy")
    return [*words, "-c", str(tmp_path / "pytest.ini"), "--rootdir", str(tmp_path)]


@pytest.mark.gpu_command
@pytest.mark.parametrize("count", [1, 2])
def test_record_of_the_tests(suite, tmp_path, count):
    found = device_tests.run(suite, tmp_path, 120.0, count, print)
    assert found["collected"] == 10
    if count == 1:  # the process ended with the test that hung: nothing after it was run
        assert found["status"] == "not finished"
        assert (found["passed"], found["failed"], found["skipped"]) == (7, 1, 1)
        return
    assert found["status"] == "failed"
    assert (found["passed"], found["failed"], found["skipped"]) == (7, 2, 1)
    assert sorted(name.rpartition("::")[2] for name in found["failures"]) == ["test_cupy_fails", "test_cupy_hangs"]
    (group,) = found["groups"].values()
    assert group["tests"] == 10
    assert 0.2 < group["compile_seconds"] < 5
    stacks = [path.read_text() for path in tmp_path.glob("tests.*.stacks")]
    assert sum("test_cupy_hangs" in text for text in stacks) == 1


@pytest.mark.gpu_command
def test_tests_whose_time_is_over_are_not_finished(suite, tmp_path, monkeypatch):
    monkeypatch.setattr(device_tests, "TEST_SECONDS", 600.0)
    monkeypatch.setattr(device_tests, "ALONE_SECONDS", 15.0)
    found = device_tests.run(suite, tmp_path, 30.0, 2, print)
    assert found["status"] == "not finished"
    assert found["passed"] >= 7  # what was known when the time was over, and the test that runs alone
    assert found["passed"] + found["failed"] + found["skipped"] == 9
    assert found["seconds"] < 60


@pytest.mark.gpu_command
def test_kernels_are_compiled_in_several_processes(monkeypatch, tmp_path):
    real, few = verify.run_limited, list(warm_up.items())
    kinds = {(item.activation, item.dtype) for item in few}
    assert kinds == set(itertools.product(HIDDEN_ACTIVATIONS, ("float32", "float64")))
    assert {item.loss for item in few} == set(LOSSES)
    monkeypatch.setattr(verify, "run_limited", lambda words, *rest: real([*words, "--backend", "numpy"], *rest))
    found = verify.compile_kernels(tmp_path / "log", 200.0, 2)
    assert found["status"] == "finished", found["tail"]
    assert f"covered {len(few)} of {len(few)} networks" in (tmp_path / "log").read_text()
    monkeypatch.setattr(verify, "run_limited", lambda words, *rest: real([*words, "--backend", "absent"], *rest))
    found = verify.compile_kernels(tmp_path / "log", 200.0, 1)
    assert found["status"] == "not finished"
    assert "absent" in " ".join(found["tail"])


def test_processes_are_bounded_by_memory():
    one = device_tests.POOL_BYTES + device_tests.CONTEXT_BYTES
    cores = device_tests.processes_for(None)
    assert device_tests.processes_for(1) == 1
    assert device_tests.processes_for(10**13) == cores
    assert device_tests.processes_for(int(1.5 * one / device_tests.MEMORY_SHARE)) == 1


def test_a_record_whose_last_line_is_cut_is_read():
    lines = [json.dumps({"collected": 2, "run": 1}), '{"test": "a::b", "when": "call", "outc']
    found = device_tests.summary(lines)
    assert (found["collected"], found["passed"], found["groups"]) == (2, 0, {})


@pytest.mark.parametrize(
    ("code", "text", "status", "counts"),
    [
        (0, "covered 36 of 36 shapes\nERROR SUMMARY: 0 errors", "passed", False),
        (0, "covered 35 of 36 shapes\nERROR SUMMARY: 0 errors", "not finished", False),
        (0, "covered 36 of 36 shapes\nERROR SUMMARY: 3 errors", "failed", True),
        (1, "AssertionError\nERROR SUMMARY: 0 errors", "failed", True),
        (1, "Segmentation fault", "not finished", False),
        (None, "", "not finished", False),
        (1, "Error: Device not supported", "does not work here", False),
    ],
)
def test_status_of_a_sanitizer(monkeypatch, tmp_path, code, text, status, counts):
    def limited(command, log, seconds, environment):
        log.write_text(text)
        return code

    monkeypatch.setattr(verify, "run_limited", limited)
    found = verify.run_shapes(tmp_path / "log", 100.0, "compute-sanitizer", "memcheck")
    assert (found["status"], found["counts"]) == (status, counts)


def test_committed_results_can_be_reported():
    files = list((ROOT / "bench" / "results").glob("*/gpu.json"))
    assert files
    for path in files:
        assert load(path).measured
        assert CliRunner().invoke(gpu.main, ["--report", str(path)]).exit_code == 0
