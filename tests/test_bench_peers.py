"""The benchmark against other libraries: they agree, a wrong one is caught, and everything is reported."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import oracle

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # bench/ is a package of the checkout, not of the wheel

from bench.measure import WrongResultError  # noqa: E402
from bench.peers import __main__ as command  # noqa: E402
from bench.peers import (  # noqa: E402
    charts,
    exact,
    floor,
    fusedmlp_peer,
    measure,
    memory,
    registry,
    report,
    results,
    worker,
)
from bench.peers.cases import PARTS, SOFTMAX, Case, cases_of, problem  # noqa: E402
from bench.peers.results import Entry, Measured, Results  # noqa: E402

STEP = Case("step", (5, 6, 1), 70)
CASES = [
    STEP,
    Case("step", (5, 6, 4, 3), 70, "relu", SOFTMAX),
    Case("epoch", (5, 6, 1), 70, batch_size=16),
    Case("epoch", (5, 6, 3), 64, "relu", SOFTMAX, batch_size=16),
    Case("forward", (5, 6, 1), 70),
    Case("forward", (5, 6, 4, 3), 70, "relu", SOFTMAX),
]
RATES = {
    "flops_per_second": 1e11,
    "product_rates": {"numpy": 1e11, "torch": 9e10},
    "forward_ns": {"sigmoid": 0.1, "tanh": 0.1, "relu": 0.05},
    "step_ns": {"sigmoid": 0.2, "tanh": 0.2, "relu": 0.1},
    "adam_ns": 0.3,
}


# The first compilation takes half a minute; torch itself uses what it has deprecated.
COMPILED = (pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning"))


@pytest.fixture(scope="module")
def peer_of():
    """The peer of a name, or a visible skip; torch's thread count is put back."""
    made, threads = {}, None

    def peer(name):
        reason = registry.missing(name)
        if reason is not None:
            pytest.skip(reason)
        if name not in made:
            made[name] = registry.peer_class(name)(1)
        return made[name]

    if importlib.util.find_spec("torch"):
        import torch

        threads = torch.get_num_threads()
    yield peer
    if threads is not None:
        torch.set_num_threads(threads)


# What is compared -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=COMPILED if n == "torch.compile" else ()) for n in registry.PEERS]
)
def test_peers_agree(peer_of, name, case):
    peer = peer_of(name)
    if case.task not in peer.tasks:
        pytest.skip(f"{name} has no {case.task} of its own")
    drawn = problem(case)
    bound = peer.bind(drawn)
    bound.call()
    errors = measure.errors_of(case, bound.result(), exact.expected(drawn))
    measure.check(case, name, errors)
    assert "J" in errors or case.task == "forward"
    assert peer.versions()
    bound.call()  # an epoch goes on, a step is the same again
    again = measure.errors_of(case, bound.result(), exact.expected(drawn))
    assert (again == pytest.approx(errors, abs=1e-6)) == (case.task != "epoch")


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu"])
@pytest.mark.parametrize(("sizes", "loss"), [((4, 7, 1), "binary_cross_entropy"), ((4, 7, 5, 3), SOFTMAX)])
def test_expected_numbers_are_the_oracles(monkeypatch, activation, sizes, loss):
    monkeypatch.setattr(exact, "CHUNK_BYTES", 2000)  # several chunks, the last one smaller
    drawn = problem(Case("step", sizes, 101, activation, loss))
    layers = drawn.layers()
    J, dW, db = oracle.loss_and_gradients(layers[::2], layers[1::2], drawn.X, drawn.Y, activation, loss)
    found = exact.expected(drawn)
    assert found.pop("J") == pytest.approx(J, rel=1e-12)
    for layer, (right_W, right_b) in enumerate(zip(dW, db, strict=True), start=1):
        np.testing.assert_allclose(found.pop(f"dW{layer}"), right_W, rtol=1e-10, atol=1e-14)
        np.testing.assert_allclose(found.pop(f"db{layer}"), right_b, rtol=1e-10, atol=1e-14)
    assert not found
    forward = exact.expected(problem(Case("forward", sizes, 101, activation, loss)))
    _, prediction = oracle.forward(layers[::2], layers[1::2], drawn.X, activation, loss)
    np.testing.assert_allclose(forward["A"], prediction, rtol=1e-12)


def test_data_is_the_same_everywhere_and_has_every_class():
    case = Case("epoch", (5, 6, 3), 500, loss=SOFTMAX, batch_size=50)
    first, second = problem(case), problem(case)
    for a, b in zip(first[1:], second[1:], strict=True):
        np.testing.assert_array_equal(a, b)
    assert set(first.Y.argmax(axis=1)) == {0, 1, 2}
    assert sorted(first.order) == list(range(500))
    assert list(first.order) != list(range(500))


def test_no_sample_of_a_relu_step_is_at_the_kink():
    case = Case("step", (8, 90, 40, 1), 20_000, "relu")
    drawn, plain = problem(case), problem(replace(case, hidden_activation="tanh"))
    W1, b1, W2, b2, *_ = (x.astype(np.float64) for x in drawn.layers())
    Z1 = drawn.X @ W1 + b1
    Z2 = np.maximum(Z1, 0) @ W2 + b2
    assert min(np.abs(Z1).min(), np.abs(Z2).min()) >= 2e-5
    changed = (drawn.X != plain.X).any(axis=1)
    assert 0 < changed.sum() < case.m / 50
    kept = {tuple(x): y for x, y in zip(plain.X.tolist(), plain.Y[:, 0].tolist(), strict=True)}
    assert all(kept[tuple(x)] == y for x, y in zip(drawn.X.tolist(), drawn.Y[:, 0].tolist(), strict=True))


def test_tolerances():
    assert measure.tolerance(STEP, True, "dW1") == 1e-5
    assert measure.tolerance(replace(STEP, m=4_000_000), True, "dW1") == 1e-5
    assert measure.tolerance(STEP, False, "dW1") == 1e-4
    assert measure.tolerance(STEP, True, "J") == pytest.approx(1e-6)


WRONG = {
    "gradient off by a little": ("dW1", lambda x: x * 1.001),
    "one number": ("dW1", lambda x: np.where(np.arange(x.size).reshape(x.shape) == 3, 0, x)),
    "bias gradient": ("db2", lambda x: x + 1e-3),
    "loss": ("J", lambda x: x * 1.0001),
    "shape": ("dW2", lambda x: x[:, 0]),
    "NaN": ("dW2", lambda x: np.where(x == x.max(), np.nan, x)),
    "sum instead of mean": ("dW1", lambda x: x * 70),
}


@pytest.mark.parametrize("peer", ["fused", "torch"])
@pytest.mark.parametrize(("name", "spoil"), WRONG.values(), ids=WRONG)
def test_wrong_result_is_caught(peer, name, spoil):
    expected = exact.expected(problem(STEP))
    right = {key: value.astype(np.float32) for key, value in expected.items()}
    measure.check(STEP, peer, measure.errors_of(STEP, right, expected))
    for result in ({**right, name: spoil(right[name])}, {k: v for k, v in right.items() if k != name}):
        with pytest.raises(WrongResultError, match=f"{name}: error .* expected at most"):
            measure.check(STEP, peer, measure.errors_of(STEP, result, expected))


# Processes and turns --------------------------------------------------------------------------------------------------


class NoProcess:
    """A worker that does its work here."""

    pid = None

    def __init__(self, name, threads):
        self.name, self.session, self.versions = name, None, ""
        self.stopped = False
        self.asked = []

    def begin(self):
        self.session = self.session or worker.Session(self.name, 1)
        self.versions = self.session.versions

    def ask(self, method, *arguments):
        self.asked.append(method)
        try:
            return getattr(self.session, method)(*arguments)
        except ArithmeticError as error:
            raise worker.PeerError(str(error)) from None

    def stop(self):
        self.stopped = True


@pytest.fixture
def no_processes(monkeypatch):
    """Workers here, and quick turns."""
    monkeypatch.setattr(measure, "Worker", NoProcess)
    monkeypatch.setattr(measure, "TURN_SECONDS", 1e-4)
    monkeypatch.setattr(worker, "forget_peak", lambda: None)  # slow in a process that holds as much as this one


def test_case_is_checked_and_timed_in_turns(no_processes):
    said = []
    with measure.Field(["fused", "numpy"], 1, said.append) as field:
        measured = field.measure(STEP, 1e-6, rounds=3)
        assert field.workers["fused"].asked == ["start", "turn", "turn", "turn", "finish"]
    assert all(w.stopped for w in field.workers.values())
    assert [e.peer for e in measured.entries] == ["fused", "numpy"]
    for entry in measured.entries:
        assert entry.status == "ok"
        assert len(entry.rounds) == 3
        assert 0 < entry.seconds < 1
        assert set(entry.errors) == {"J", "dW1", "db1", "dW2", "db2"}
        assert entry.first_seconds > 0
    assert not said


def test_wrong_and_failing_peers_are_shown_and_not_timed(monkeypatch, no_processes):
    def without_a_sample(self, parameters, X, Y, gradients):
        return real(self, parameters, X[:, :-1], Y[:, :-1], gradients)

    def failing(self, problem):
        if problem.case.m == STEP.m:
            raise ArithmeticError("out of numbers")
        return real_bind(self, problem)

    from fusedmlp.engines.composed import ComposedEngine

    real, real_bind = ComposedEngine.loss_and_gradients, fusedmlp_peer.Composed.bind
    monkeypatch.setattr(ComposedEngine, "loss_and_gradients", without_a_sample)
    monkeypatch.setattr(fusedmlp_peer.Composed, "bind", failing)
    said = []
    with measure.Field(["fused", "composed", "numpy"], 1, said.append) as field:
        measured = field.measure(STEP, 1e-6, rounds=2)
    fused, composed, numpy = measured.entries
    assert fused.seconds
    assert (composed.status, composed.reason, composed.seconds) == ("failed", "out of numbers", None)
    assert numpy.status == "wrong"
    assert numpy.reason.startswith("J: error")
    assert numpy.seconds is None
    assert not numpy.rounds
    assert "turn" not in field.workers["numpy"].asked
    assert [line.split(":")[0] for line in said] == ["failed", "wrong"]
    text = report.markdown(Results({"device": "CPU", "threads": 1, "versions": {}}, RATES, [measured]))
    assert "| **failed** | **wrong** |" in text
    assert "- composed, failed: out of numbers (5-6-1, m = 70)" in text


def test_missing_peer_is_skipped_with_the_command(monkeypatch, no_processes):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "jax" else real(name))
    with measure.Field(["fused", "jax"], 1, print) as field:
        measured = field.measure(STEP, 1e-6, rounds=1)
    assert [(e.peer, e.status) for e in measured.entries] == [("fused", "ok"), ("jax", "skipped")]
    assert measured.entries[1].reason == "jax is not installed: pip install 'fusedmlp[peers]'"
    text = report.markdown(Results({"device": "CPU", "threads": 1, "versions": {}}, RATES, [measured]))
    assert "- jax, skipped: jax is not installed: pip install 'fusedmlp[peers]'" in text


def test_who_does_not_take_part(monkeypatch):
    tasks = {"fused": ("step", "epoch"), "torch": ("step",)}
    assert measure.why_not(STEP, "torch", tasks) is None
    assert measure.why_not(Case("epoch", (2, 2, 1), 9, batch_size=3), "torch", tasks) == "no epoch of its own"
    assert "measured on fused alone" in measure.why_not(replace(STEP, only=("fused",)), "torch", tasks)
    monkeypatch.setattr(measure, "_free_bytes", lambda: 2**30)
    large = Case("step", (64, 1024, 1), 65_536)
    assert measure.why_not(large, "torch", tasks) == "needs about 1.0 GiB; 1.0 GiB are free"
    assert measure.why_not(large, "fused", tasks) is None


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system does not tell what a process uses")
def test_next_turn_waits_until_the_one_before_is_idle(monkeypatch):
    ticks = iter([5, 8, 11, 11, 99])
    monkeypatch.setattr(measure, "_processor_ticks", lambda pid: next(ticks))
    slept = []
    monkeypatch.setattr(measure.time, "sleep", slept.append)
    measure.settle(1)
    assert slept == [measure.LOOK_SECONDS] * 3
    assert next(ticks) == 99
    endless = iter(range(10**6))
    monkeypatch.setattr(measure, "_processor_ticks", lambda pid: next(endless))
    measure.settle(1)  # never idle: it goes on all the same
    assert len(slept) == 3 + measure.MOST_LOOKS


def test_worker_process():
    """Work in another process, an error there, its death, and a new start."""
    affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    with worker.Worker("numpy", 1) as process:
        process.begin()
        assert "numpy" in process.versions
        assert process.pid != os.getpid()
        assert affinity is None or os.sched_getaffinity(process.pid) == {min(affinity)}
        result, seconds = process.ask("start", STEP)
        measure.check(STEP, "numpy", measure.errors_of(STEP, result, exact.expected(problem(STEP))))
        assert seconds > 0
        assert all(t > 0 for t in process.ask("turn", 0.001))
        peak = process.ask("finish")
        assert peak is None or peak < 64e6
        with pytest.raises(worker.PeerError, match="AttributeError: 'NoneType' object has no attribute 'call'"):
            process.ask("turn", 0.001)
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(worker.PeerError, match="its process died|process is gone"):
            process.ask("turn", 0.001)
        assert process.pid is None
        process.begin()
        assert process.ask("start", STEP)
    assert affinity is None or os.sched_getaffinity(0) == affinity


def test_memory_is_measured_in_its_own_process():
    found = worker.in_new_process(1, memory.measure, Case("step", (8, 64, 1), 100_000))
    assert found["samples_bytes"] == 100_000 * 9 * 4
    # An array of n2 x m alone would be 25.6 MB.
    assert -1e6 < found["peak_bytes"] < 20e6
    with pytest.raises(worker.PeerError, match="TypeError: replace"):
        worker.in_new_process(1, memory.measure, None)


def test_errors_are_told_without_paths():
    error = ImportError("cannot load /home/someone/lib/python3/libX.so: no file\nand more")
    assert worker._said(error) == "ImportError: cannot load libX.so: no file"


# Floor and figures ----------------------------------------------------------------------------------------------------


def test_floor_counts_what_cannot_be_avoided():
    m = 1000
    assert Case("step", (64, 1024, 1), m).flops == 4 * 64 * 1024 * m
    assert Case("step", (784, 128, 10), m).flops == (4 * 784 * 128 + 6 * 128 * 10) * m
    assert Case("step", (64, 256, 128, 1), m).flops == (4 * 64 * 256 + 6 * 256 * 128) * m
    assert Case("forward", (64, 1024, 1), m).flops == 2 * 64 * 1024 * m
    assert Case("step", (1, 64, 1), m).flops == 0
    epoch = Case("epoch", (64, 100, 1), m, "relu", batch_size=300)
    assert epoch.steps == 4
    parameters = 65 * 100 + 101
    right = 4 * 64 * 100 * m / 1e11 + (m * 100 * 0.1 + 4 * parameters * 0.3) * 1e-9
    assert floor.seconds(epoch, RATES) == pytest.approx(right)


def test_floor_is_measured_by_right_arithmetic(monkeypatch):
    x = np.linspace(-87, 87, 4001, dtype=np.float32)
    found = np.array([floor._exp(value) for value in x])  # compiled code returns a Python float
    np.testing.assert_allclose(found, np.exp(x.astype(np.float64)), rtol=5e-7)
    sweeps = floor._sweeps(*floor.ACTIVATIONS["tanh"])
    rng = np.random.default_rng(0)
    Z, (b, w) = rng.standard_normal((3, 40), np.float32), rng.standard_normal((2, 3), np.float32)
    A, dZ, z2, dw, db = (np.empty(shape, np.float32) for shape in ((3, 40), (3, 40), 40, 3, 3))
    sweeps(Z, A, dZ, b, w, z2, dw, db, 1, True)
    right = np.tanh(Z + b[:, None])
    np.testing.assert_allclose(A, right, atol=1e-6)
    np.testing.assert_allclose(z2, w @ right, atol=1e-5)
    right_dZ = np.outer(w, z2) * (1 - right * right)
    np.testing.assert_allclose(dZ, right_dZ, atol=1e-5)
    np.testing.assert_allclose(dw, right @ z2, atol=1e-4)
    np.testing.assert_allclose(db, right_dZ.sum(axis=1), atol=1e-4)
    monkeypatch.setattr(floor, "SECONDS", 0.001)
    monkeypatch.setattr(floor, "PRODUCT_SIZE", 64)
    monkeypatch.setattr(floor, "ACTIVATIONS", {"tanh": floor.ACTIVATIONS["tanh"]})
    rates = floor.measure(1)
    assert rates["flops_per_second"] == max(rates["product_rates"].values()) > 0
    assert 0 < rates["forward_ns"]["tanh"] < 100
    assert 0 < rates["step_ns"]["tanh"] < 100
    assert 0 < rates["adam_ns"] < 100


def measured(case, **milliseconds):
    entries = [
        Entry(name.replace("_", "-"), seconds=ms / 1e3, rounds=[ms / 1e3] * 3, errors={"J": 1e-8, "dW1": 2e-7})
        for name, ms in milliseconds.items()
    ]
    return Measured(case, entries, 0.0005, 0.0)


def sweep_results():
    over_m = [measured(Case("m", (64, 1024, 1), 2**k), fused=2**k / 1e3, jax=2**k / 250) for k in (12, 14, 16, 18)]
    over_n2 = [measured(Case("n2", (64, n2, 1), 65536), fused=n2**1.02, jax=3 * n2) for n2 in (64, 256, 1024)]
    tables = [
        measured(STEP, fused=1.0, numpy=2.0, torch=4.5, jax=3.0, scikit_learn=9.0),
        Measured(Case("forward", (5, 6, 1), 70), [Entry("fused", "wrong", "A: error 1")], 0.001, 0.5),
    ]
    machine = {"device": "Some CPU", "threads": 2, "versions": {"fused": "fusedmlp 1", "jax": "jax 2"}}
    return Results(machine, RATES, [*tables, *over_m, *over_n2])


def test_table_has_ratios_and_the_floor():
    text = report.markdown(sweep_results())
    line = next(line for line in text.splitlines() if line.startswith("| 5-6-1, m = 70 | 0.500"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1:4] == ["0.500", "1.00", "50%"]
    assert cells[4:] == ["2.00 (2.0×)", "4.50 (4.5×)", "3.00 (3.0×)", "9.00 (9.0×)", "jax 3.00×"]
    assert "| 5-6-1, m = 70* | 1.00 | **wrong** |" in text
    assert "kept up to 0.5 cores busy" in text
    assert "∝ m^1.000 from m = 16,384 to 262,144" in text
    assert "∝ n2^1.020 from n2 = 64 to 1,024" in text
    assert "GFLOP/s: numpy 100, torch 90 (" in text


def test_charts_have_a_line_per_library_and_the_floor(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn, real = {}, Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, path, **kw: (drawn.update({path.name: self}), real(self, path, **kw))[1]
    )
    paths = charts.draw(sweep_results(), tmp_path)
    assert [path.name for path in paths] == ["time-m.png", "time-n2.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    (panel,) = drawn["time-m.png"].axes
    assert panel.get_xscale() == panel.get_yscale() == "log"
    assert [line.get_label() for line in panel.lines] == ["fused", "jax", "floor"]
    assert [list(line.get_xdata()) for line in panel.lines] == [[2**12, 2**14, 2**16, 2**18]] * 3
    assert "n2 = 1,024" in panel.get_title()
    assert set(charts.STYLES) == set(registry.PEERS)
    assert not charts.draw(Results({}, RATES, [measured(STEP, fused=1.0)]), tmp_path)


# The command ----------------------------------------------------------------------------------------------------------


def test_every_part_has_its_cases():
    everything = [case for part in PARTS for case in cases_of(part, quick=False)]
    assert len(set(everything)) == len(everything)
    for part in PARTS:
        assert set(cases_of(part, quick=True)) - set(cases_of(part, quick=False)) <= {
            case for case in cases_of("sweep", quick=True) if case.only
        }
    sizes = {(c.layer_sizes, c.m) for c in cases_of("full-batch", quick=False)}
    assert {((64, 1024, 1), 65_536), ((2, 64, 1), 1_000_000), ((30, 64, 1), 569)} < sizes
    assert max(c.m for c in cases_of("sweep", quick=False)) == memory.CASE.m == 4_000_000


def test_run_writes_results_table_and_charts(no_processes, monkeypatch, tmp_path):
    cases = {
        "full-batch": (STEP,),
        "epochs": (Case("epoch", (5, 6, 1), 70, batch_size=16),),
        "sweep": (Case("m", (5, 6, 1), 70), Case("m", (5, 6, 1), 200, only=("fused",))),
    }
    monkeypatch.setattr(command, "cases_of", lambda part, quick: cases.get(part, ()))
    monkeypatch.setattr(
        command, "in_new_process", lambda threads, f, *a: RATES if f is floor.measure else memory.measure(STEP)
    )
    monkeypatch.setattr(command.time, "sleep", lambda seconds: None)
    arguments = ["--out", str(tmp_path / "new"), "--peers", "numpy,fused", "--threads", "1", "--rounds", "2"]
    done = CliRunner().invoke(command.main, arguments)
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["results.json", "results.md", "time-m.png"]
    text = (tmp_path / "new" / "results.json").read_text()
    assert not re.search(rf"\b{re.escape(platform.node())}\b", text)
    assert str(ROOT) not in text
    assert str(tmp_path) not in text
    assert len(json.loads(text)["measured"]) == 4
    read = results.load(tmp_path / "new" / "results.json")
    assert [m.case for m in read.measured] == [case for part in cases.values() for case in part]
    assert list(read.machine["versions"]) == ["fused", "numpy"]
    assert read.measured[0].entries == read.measured[2].entries  # the same work, measured once
    assert [e.peer for e in read.measured[3].entries] == ["fused"]
    again = CliRunner().invoke(
        command.main, ["--report", str(tmp_path / "new" / "results.json"), "--out", str(tmp_path / "again")]
    )
    assert again.exit_code == 0, again.output
    assert (tmp_path / "again" / "results.md").read_text() == (tmp_path / "new" / "results.md").read_text()


def test_wrong_peer_fails_the_command(tmp_path):
    results.save(sweep_results(), tmp_path / "run.json")
    done = CliRunner().invoke(command.main, ["--report", str(tmp_path / "run.json"), "--out", str(tmp_path)])
    assert done.exit_code == 1
    assert "some libraries failed or were wrong" in done.output
    assert (tmp_path / "results.md").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--peers", "fused,tensorflow"], "got tensorflow"),
        (["--threads", "100000"], "the usable cores; got 100000"),
        (["--part", "all"], "full-batch"),
        (["--report", "{folder}/none.json"], "No such file"),
        (["--report", "{folder}/other.json"], "got something else"),
    ],
)
def test_bad_usage_is_told(tmp_path, arguments, message):
    (tmp_path / "other.json").write_text('{"benchmarks": []}')
    arguments = [a.format(folder=tmp_path) for a in arguments]
    done = CliRunner().invoke(command.main, ["--out", str(tmp_path), *arguments])
    assert done.exit_code == 2
    assert message in done.output
