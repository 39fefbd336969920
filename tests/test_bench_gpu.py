"""The benchmark of a GPU, on a CPU in its place: the whole flow, what it refuses, what it reports."""

from __future__ import annotations

import json
import platform
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # bench/ is a package of the checkout, not of the wheel

from bench.gpu import __main__ as command  # noqa: E402
from bench.gpu import cases, device, exact, libraries, measure, rates, report, results, session  # noqa: E402
from bench.gpu.cases import GROUPS, GpuCase, Group, draw  # noqa: E402
from bench.gpu.results import GpuResults  # noqa: E402
from bench.peers import exact as peers_exact  # noqa: E402
from bench.peers.worker import PeerError  # noqa: E402

STEP = GpuCase("step", (5, 6, 1), 300)
EPOCH = GpuCase("epoch", (5, 6, 1), 70, batch_size=16)
TINY = {
    "steps": Group((STEP, replace(STEP, precision="tf32")), 1.3),
    "epochs": Group((EPOCH, replace(EPOCH, batch_size=70)), 5.0, "torch"),
}
RATES = {"bytes_per_second": 1e12, "strict_flops_per_second": 1e13, "tf32_flops_per_second": 1e14}


class Here:
    """A library's worker that works in this process."""

    def __init__(self, name, kind):
        self.name, self.kind, self.session, self.versions = name, kind, None, ""
        self.limit_seconds, self.asked, self.stopped = 0.0, [], 0

    def begin(self):
        self.session = self.session or session.Session(self.name, self.kind)
        self.versions = self.session.versions

    def ask(self, method, *arguments):
        self.asked.append(method)
        try:
            return getattr(self.session, method)(*arguments)
        except (ArithmeticError, AssertionError) as error:
            raise PeerError(str(error)) from None

    def stop(self):
        self.session = None
        self.stopped += 1


@pytest.fixture
def in_this_process(monkeypatch):
    """No processes, quick turns."""
    monkeypatch.setattr(measure, "DeviceWorker", Here)
    monkeypatch.setattr(measure, "TURN_SECONDS", 1e-4)
    monkeypatch.setattr(rates, "ROUNDS", 1)
    for name in measure.ENVIRONMENT:
        monkeypatch.setenv(name, "")  # put back afterwards


def a_field(names, limit=1000.0, rounds=2):
    return measure.Field(list(names), device.Host(), measure.Clock(limit), [].append, rounds)


# Without a GPU --------------------------------------------------------------------------------------------------------


def test_without_a_gpu_nothing_is_done(monkeypatch, tmp_path):
    reason = 'CuPy is not installed: pip install "fusedmlp[cuda13]"'
    monkeypatch.setattr(device.Cuda, "unavailable_reason", classmethod(lambda cls: reason))
    monkeypatch.setattr(command, "run", lambda *a: pytest.fail("something was run"))
    done = CliRunner().invoke(command.main, ["--out", str(tmp_path / "out")])
    assert done.exit_code == 3
    assert done.stderr == f"no GPU can be used: {reason}\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--cases", "30-64,1-1"], "got 1-1"), (["--limit", "1"], "--limit"), (["--nonsense"], "No such option")],
)
def test_bad_usage_is_told(arguments, message):
    done = CliRunner().invoke(command.main, arguments)
    assert done.exit_code == 2
    assert message in done.output


@pytest.mark.parametrize(
    ("arguments", "wanted", "limit", "rounds"),
    [
        ([], list(GROUPS), 480, "bench/results"),
        (["--quick"], list(cases.QUICK), 120, "bench/out/gpu"),
        (["--cases", "16-256,30-64", "--limit", "77"], ["30-64", "16-256"], 77, "bench/out/gpu"),
    ],
)
def test_what_is_run_and_where_it_goes(monkeypatch, arguments, wanted, limit, rounds):
    seen = {}

    def run(given, plan, say):
        seen["plan"] = plan
        return GpuResults({"name": "X"})

    monkeypatch.setattr(device.Cuda, "unavailable_reason", classmethod(lambda cls: None))
    monkeypatch.setattr(command, "run", run)
    monkeypatch.setattr(command, "write", lambda results, folder: seen.update(folder=folder) or [])
    done = CliRunner().invoke(command.main, arguments)
    assert done.exit_code == 0, done.output
    assert list(seen["plan"].groups) == wanted
    assert seen["plan"].limit == limit
    assert seen["folder"] == ROOT / rounds


# The numbers ----------------------------------------------------------------------------------------------------------


def test_numbers_do_not_depend_on_the_pieces_they_are_made_in(monkeypatch):
    case = GpuCase("step", (16, 4, 1), 5000)
    whole = draw(case, np)
    monkeypatch.setattr(cases, "ELEMENTS_AT_ONCE", 16 * 7)
    pieces = draw(case, np)
    np.testing.assert_array_equal(whole.X, pieces.X)
    np.testing.assert_array_equal(whole.Y, pieces.Y)
    assert whole.X.dtype == whole.Y.dtype == np.float32
    assert abs(whole.X.mean()) < 0.02
    assert abs(whole.X.var() - 1) < 0.02
    assert np.abs(np.corrcoef(whole.X.T) - np.eye(16)).max() < 0.06
    assert 0.3 < whole.Y.mean() < 0.6
    assert sorted(draw(EPOCH, np).order) == list(range(70))


@pytest.mark.parametrize("case", [STEP, GpuCase("step", (5, 6, 3), 101), EPOCH])
def test_exact_numbers_are_those_of_the_other_benchmark(monkeypatch, case):
    monkeypatch.setattr(exact, "CHUNK_BYTES", 8 * 6 * 40)  # several chunks, the last one smaller
    problem = draw(case, np)
    found, right = exact.expected(problem, np), peers_exact.expected(problem)
    assert found.keys() == right.keys()
    for name, value in right.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-14, err_msg=name)


def test_cases_and_targets_are_those_of_the_plan():
    steps = {(c.layer_sizes, c.m): group.target for group in GROUPS.values() for c in group.cases if c.task == "step"}
    assert steps == {((784, 1024, 1), 65_536): 1.3, ((64, 1024, 1), 2**20): 2.5, ((16, 256, 1), 2**24): 4.0}
    small = GROUPS["30-64"]
    assert [(c.m, c.batch_size) for c in small.cases] == [(569, 32), (569, 569)]
    assert (small.target, small.against) == (5.0, "torch")
    for name in ("784-1024", "64-1024", "16-256"):
        assert [c.precision for c in GROUPS[name].cases] == ["strict", "tf32"]
    assert set(cases.QUICK) < set(GROUPS)


# Checked, then timed --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [n for n in libraries.LIBRARIES if not n.startswith("torch.compile")] + [
        pytest.param(n, marks=(pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")))
        for n in libraries.LIBRARIES if n.startswith("torch.compile")
    ],
)  # fmt: skip
def test_libraries_agree(name):
    reason = libraries.missing(name)
    if reason:
        pytest.skip(reason)
    here = session.Session(name, "cpu")
    for case in (STEP, EPOCH, replace(EPOCH, batch_size=70)):
        started = here.start(case)
        errors = measure.errors_of(case, started.result, exact.expected(draw(case, np), np))
        measure.check(case, name, errors)
        assert 0 < here.turn(1e-4) < 1
        assert here.finish() is None  # a CPU does not tell
    assert here.versions


def test_field_checks_and_times_in_turns(in_this_process):
    with a_field(["fused", "composed"], rounds=3) as field:
        (strict, tf32) = field.measure(TINY["steps"], RATES)
        assert field.workers["fused"].asked[:5] == ["start", "turn", "turn", "turn", "finish"]
    assert [e.peer for e in strict.entries] == ["fused", "composed"]
    for entry in strict.entries:
        assert (entry.status, len(entry.rounds)) == ("ok", 3)
        assert min(entry.rounds) <= entry.seconds <= max(entry.rounds)
        assert set(entry.errors) == {"J", "dW1", "db1", "dW2", "db2"}
        assert entry.engine == "composed"
    assert strict.floor_seconds == rates.least_seconds(STEP, RATES, "narrow")
    composed = tf32.entries[1]
    assert composed.status == "skipped"
    assert "strict float32 alone" in composed.reason


class Planted(libraries.Composed):
    """A library whose first weight's gradient is off by one percent."""

    def bind(self, problem, tf32):
        bound = super().bind(problem, tf32)
        return bound._replace(result=lambda: (right := bound.result()) | {"dW1": right["dW1"] * np.float32(1.01)})


class Failing(libraries.Composed):
    """A library that cannot do a step."""

    def bind(self, problem, tf32):
        raise ArithmeticError("out of numbers")


def test_wrong_and_failing_libraries_are_not_timed(in_this_process, monkeypatch):
    for name, library in (("composed", Planted), ("torch", Failing), ("jax", Planted)):
        monkeypatch.setitem(libraries.LIBRARIES, name, library)
    with a_field(["fused", "composed", "torch", "jax"]) as field:
        measured = field.measure(Group((STEP,), 1.3), RATES)
        asked = {name: worker.asked for name, worker in field.workers.items()}
    fused, composed, torch, jax = measured[0].entries
    assert fused.seconds
    assert (composed.status, jax.status, composed.seconds) == ("wrong", "wrong", None)
    assert composed.reason.startswith("dW1: error 0.01 of the largest value; expected at most")
    assert (torch.status, torch.reason) == ("failed", "out of numbers")
    assert asked["composed"] == asked["jax"] == ["start", "finish"]
    assert asked["torch"] == ["start"]
    found = GpuResults({"name": "X"}, measured=measured)
    assert found.mistakes() == [f"composed at {STEP}: wrong: {composed.reason}"]  # peers are no mistake of ours
    text = report.markdown(found)
    assert "| **wrong** | **failed** | **wrong** |" in text
    assert "- torch, failed: out of numbers (5-6-1, m = 300)" in text


def test_a_library_that_fails_is_started_anew(in_this_process, monkeypatch):
    monkeypatch.setitem(libraries.LIBRARIES, "torch", Failing)
    with a_field(["torch"]) as field:
        field.measure(Group((STEP,), 1.3), RATES)
        assert field.workers["torch"].stopped == 1
        monkeypatch.setitem(libraries.LIBRARIES, "torch", libraries.Composed)
        (measured,) = field.measure(Group((STEP,), 1.3), RATES)
    assert measured.entries[0].status == "ok"


def test_tolerances():
    large, tf32 = replace(STEP, m=2**20), replace(STEP, precision="tf32")
    assert measure.tolerance(STEP, True, "dW1") == 1e-4
    assert measure.tolerance(large, True, "dW1") == pytest.approx(1e-3)
    assert measure.tolerance(tf32, True, "dW1") == measure.tolerance(tf32, False, "dW1") == 1e-2
    assert measure.tolerance(EPOCH, True, "change") < measure.tolerance(EPOCH, False, "change")
    assert measure.tolerance(STEP, False, "J") < measure.tolerance(tf32, False, "J")


# Time and memory ------------------------------------------------------------------------------------------------------


def test_what_the_time_does_not_suffice_for_is_listed(in_this_process):
    with a_field(["fused", "torch"], limit=measure.LEAST_SECONDS / 2) as field:
        measured = [m for group in TINY.values() for m in field.measure(group, RATES)]
        assert field.workers["fused"].asked == []
    assert len(measured) == 4
    assert {(e.status, e.reason) for m in measured for e in m.entries} == {("not run", "time")}
    text = report.markdown(GpuResults({"name": "X"}, measured=measured))
    assert "- fused, not run: time (5-6-1, m = 300; 5-6-1, m = 300, TF32; 5-6-1, m = 70" in text
    assert "| 5-6-1, m = 300 | **not run** | **not run** |" in text
    assert not GpuResults({"name": "X"}, measured=measured).mistakes()


def test_time_that_runs_out_meanwhile(in_this_process, monkeypatch):
    with a_field(["fused"]) as field:
        monkeypatch.setattr(
            Here, "ask", lambda self, *a: field.clock.__init__(0) or (_ for _ in ()).throw(PeerError("late"))
        )
        (measured,) = field.measure(Group((STEP,), 1.3), RATES)
    assert [(e.status, e.reason) for e in measured.entries] == [("not run", "time")]


def test_an_answer_that_does_not_come_is_not_waited_for(monkeypatch):
    worker = session.DeviceWorker("fused", "cpu")
    worker.limit_seconds = 60
    with worker:
        worker.begin()
        worker.limit_seconds = 0.05
        with pytest.raises(PeerError, match=r"took more than 0 s \(start\)"):
            worker.ask("start", GpuCase("step", (64, 512, 1), 100_000))
        assert worker.pid is None


def test_libraries_that_do_not_fit_take_turns_of_their_own(in_this_process, monkeypatch):
    assert measure.side_by_side({"a": 3, "b": 3, "c": 3}, None) == [["a", "b", "c"]]
    assert measure.side_by_side({"a": 30, "b": 30, "c": 50, "d": 20}, 100) == [["a", "b"], ["c", "d"]]
    large = GROUPS["16-256"].cases[0]
    assert 60e9 < measure.needed_bytes(large, "torch") < 80e9
    assert measure.needed_bytes(large, "fused") < 6e9

    free = iter([10 * 2**30] * 2 + [2**30] * 9)
    with a_field(["fused", "composed", "torch"]) as field:
        monkeypatch.setattr(field.device, "free_bytes", lambda: next(free), raising=False)
        monkeypatch.setattr(measure, "needed_bytes", lambda case, name: {"torch": 2**40}.get(name, 6 * 2**30))
        (measured,) = field.measure(Group((STEP,), 1.3), RATES)
        assert [field.workers[name].stopped for name in ("fused", "composed", "torch")] == [1, 1, 0]
    assert [e.status for e in measured.entries] == ["ok", "ok", "skipped"]
    assert measured.entries[2].reason == "needs about 1024 GiB; 10 GiB are free"


def test_least_time():
    case = GpuCase("step", (64, 1024, 1), 1000)
    hidden, samples, flops = 4 * 1024 * 1000, 4 * 65 * 1000, 4 * 64 * 1024 * 1000
    slow = {"bytes_per_second": 1.0, "strict_flops_per_second": 1e30}
    assert rates.least_seconds(case, slow, "middle") == 4 * hidden + 2 * samples
    assert rates.least_seconds(case, slow, "narrow") == samples
    assert rates.least_seconds(case, {"bytes_per_second": 1e30, "strict_flops_per_second": 1.0}, "middle") == flops
    assert rates.least_seconds(replace(case, precision="tf32"), slow, "middle") is None
    assert rates.least_seconds(EPOCH, slow, "middle") is None


def test_wrong_primitives_are_refused(monkeypatch):
    found = rates.primitives(device.Host(), 1e9)
    assert set(found) == {"sigmoid", "fused_backward"}
    assert found["sigmoid"]["share_of_copy"] == found["sigmoid"]["bytes"] / found["sigmoid"]["seconds"] / 1e9
    from fusedmlp.backends.numpy_backend import NumpyBackend

    real = NumpyBackend.fused_backward

    def wrong(self, W, dZ, A, activation="sigmoid", out=None):
        result = real(self, W, dZ, A, activation, out)
        result *= np.float32(1.0001)
        return result

    monkeypatch.setattr(NumpyBackend, "fused_backward", wrong)
    with pytest.raises(AssertionError, match="fused_backward: error"):
        rates.primitives(device.Host(), 1e9)


# The whole run ----------------------------------------------------------------------------------------


def test_whole_run_on_a_cpu(monkeypatch, tmp_path):
    """In processes, as on a GPU: numpy's backend in cupy's place, and torch on the CPU as the peer."""
    pytest.importorskip("torch", reason="torch is not installed: pip install 'fusedmlp[test]'")
    monkeypatch.setattr(measure, "TURN_SECONDS", 1e-3)
    for name in measure.ENVIRONMENT:
        monkeypatch.setenv(name, "")
    plan = command.Plan(TINY, ("fused", "composed", "torch"), 300.0, False, False, True, tmp_path / "unfinished")
    said = []
    found = command.run(device.Host(), plan, said.append)
    assert found.mistakes() == []
    json_file, markdown_file = command.write(found, tmp_path / "out")
    assert json_file == tmp_path / "out" / "cpu-in-place-of-a-gpu" / "gpu.json"
    assert sorted(path.name for path in json_file.parent.iterdir()) == ["gpu.json", "gpu.md"]
    text, read = json_file.read_text(), json.loads(json_file.read_text())
    for private in (platform.node(), str(ROOT), str(tmp_path)):
        assert private not in text + markdown_file.read_text()
    assert [line["case"]["group"] for line in read["measured"]] == ["step", "step", "epoch", "epoch"]
    for line in read["measured"]:
        by_name = {entry["peer"]: entry for entry in line["entries"]}
        expected = ["ok"] if line["case"]["precision"] == "strict" else ["skipped"]
        assert [by_name["torch"]["status"]] == expected
        assert by_name["fused"].get("seconds", 1) > 0
    assert read["summary"][-1]["case"] == "5-6-1, m = 70, batches of 70"
    assert "torch" in read["versions"]["torch"]
    assert read["rates"]["bytes_per_second"] > 0
    assert set(read["primitives"]) == {"sigmoid", "fused_backward"}
    partial = results.load(tmp_path / "unfinished" / "partial.json")
    assert [m.case for m in partial.measured] == [m.case for m in found.measured]
    assert any(line.startswith("5-6-1, m = 300: fused ") for line in said)
