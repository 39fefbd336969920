"""The benchmarks from end to end on tiny cases: right results are timed and reported, wrong ones are refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from fusedmlp.backends.numpy_backend import NumpyBackend
from fusedmlp.engines.composed import ComposedEngine
from fusedmlp.model.optimizers import OptimizerState

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # bench/ is a package of the checkout, not of the wheel

from bench import operations, report, results  # noqa: E402
from bench.grid import Shape  # noqa: E402
from bench.measure import WrongResultError, measure  # noqa: E402
from bench.peers import __main__ as command  # noqa: E402
from bench.peers import floor  # noqa: E402
from bench.peers import measure as peers_measure  # noqa: E402
from bench.peers.cases import Case  # noqa: E402
from bench.peers.device import Cpu  # noqa: E402
from bench.peers.session import Session  # noqa: E402

SHAPE = Shape(m=2500, n2=16, n1=5)
STEP, EPOCH, FORWARD = (
    Case("step", (5, 6, 1), 70),
    Case("epoch", (5, 6, 1), 70, batch_size=16),
    Case("forward", (5, 6, 1), 70),
)
SOFTMAX = Case("step", (5, 7, 6, 3), 70, loss="categorical_cross_entropy")
RATES = {
    "flops_per_second": 1e11,
    "product_rates": {"numpy": 1e11},
    "forward_ns": {"sigmoid": 0.1, "tanh": 0.1, "relu": 0.05},
    "step_ns": {"sigmoid": 0.2, "tanh": 0.2, "relu": 0.1},
    "adam_ns": 0.3,
}


class Stopwatch:
    """The part of pytest-benchmark's fixture that `measure` uses; it counts what it is asked to time."""

    def __init__(self):
        self.timed, self.extra_info = 0, {}

    def pedantic(self, call, rounds, iterations):
        call()
        self.timed += 1


class LocalWorker:
    """A `Worker` without a process: the session runs here."""

    pid = None
    versions = "here"

    def __init__(self, name, kind, threads):
        self.arguments = name, kind, threads
        self.session = None

    def begin(self):
        self.session = self.session or Session(*self.arguments)

    def ask(self, method, *arguments):
        return getattr(self.session, method)(*arguments)

    def stop(self):
        self.session = None


def without_last_sample(real):
    def wrong(self, *args, out=None, **kwargs):
        out = real(self, *args, out=out, **kwargs)
        out[:, -1] = 0.5
        return out

    return wrong


def without_a_sample(real):
    return lambda self, parameters, X, Y, *args: real(self, parameters, X[:, :-1], Y[:, :-1], *args)


def one_step_late(real):
    def wrong(self, *args):
        self.t += 1
        return real(self, *args)

    return wrong


WRONG = [
    (operations.Matmul, NumpyBackend, "matmul", without_last_sample),
    (operations.Sigmoid, NumpyBackend, "sigmoid", lambda real: lambda self, Z, out: np.tanh(Z, out=out)),
    (operations.FusedBackward, NumpyBackend, "fused_backward", without_last_sample),
    (operations.Forward, ComposedEngine, "forward", lambda real: lambda self, *args: real(self, *args).astype(float)),
    (operations.LossAndGradients, ComposedEngine, "loss_and_gradients", without_a_sample),
    (operations.AdamStep, OptimizerState, "step", one_step_late),
]


@pytest.mark.parametrize(("operation", "owner", "method", "make_wrong"), WRONG)
def test_wrong_result_is_not_timed(monkeypatch, operation, owner, method, make_wrong):
    monkeypatch.setattr(owner, method, make_wrong(getattr(owner, method)))
    stopwatch = Stopwatch()
    with pytest.raises(WrongResultError, match=f"{operation.name} on numpy at m2500"):
        measure(stopwatch, operation(SHAPE), NumpyBackend(), 0.001)
    assert not stopwatch.timed


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("operation", operations.OPERATIONS, ids=lambda operation: operation.name)
def test_right_result_is_timed(operation, dtype):
    stopwatch = Stopwatch()
    measure(stopwatch, operation(replace(SHAPE, dtype=dtype)), NumpyBackend(), 0.001)
    assert stopwatch.timed == 1
    assert stopwatch.extra_info["operation"] == operation.name


def test_run_and_report(tmp_path):
    path = tmp_path / "new" / "run.json"
    command = [sys.executable, "-m", "pytest", "bench", "-p", "no:cacheprovider", "-q", "--quick"]
    command += ["-k", "matmul and (m1024 or m4096)", "--benchmark-quiet", f"--benchmark-json={path}"]
    # In a process of pytest-xdist's, pytest-benchmark measures nothing.
    ours = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    environment = {**ours, "FUSEDMLP_BACKEND": "numpy", "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    options = ["--markdown", tmp_path / "run.md", "--charts", tmp_path, "--json", tmp_path / "run.json"]
    done = CliRunner().invoke(report.main, [str(a) for a in (path, *options)])
    assert done.exit_code == 0, done.output
    assert "| 4096 | 128 |" in (tmp_path / "run.md").read_text()
    assert (tmp_path / "throughput-m.png").read_bytes().startswith(b"\x89PNG")
    assert results.load(tmp_path / "run.json").results == results.load(path).results


@pytest.fixture
def here(monkeypatch):
    """Libraries run in this process, and the floor is known."""
    # This process has run all other tests: collecting its garbage takes a second.
    monkeypatch.setattr(Cpu, "forget_peak", lambda self: None)
    monkeypatch.setattr(peers_measure, "Worker", LocalWorker)
    monkeypatch.setattr(peers_measure, "settle", lambda pid: None)
    monkeypatch.setattr(command, "in_new_process", lambda threads, function, *rest: RATES)
    monkeypatch.setattr(command.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(peers_measure, "TURN_SECONDS", {"cpu": 1e-4, "cuda": 1e-4})


def test_peers_run_and_report(here, monkeypatch, tmp_path):
    sweep = (Case("m", (5, 6, 1), 70), Case("m", (5, 6, 1), 200, only=("fused",)))
    cases = {"full-batch": (STEP, SOFTMAX), "epochs": (EPOCH,), "prediction": (FORWARD,), "sweep": sweep}
    monkeypatch.setattr(command, "cases_of", lambda part, quick: cases.get(part, ()))
    arguments = ["--out", str(tmp_path), "--peers", "fused,numpy,scikit-learn", "--threads", "1", "--rounds", "2"]
    parts = [f"--part={part}" for part in cases]
    done = CliRunner().invoke(command.main, [*arguments, *parts])
    assert done.exit_code == 0, done.output
    read = command.files.load(tmp_path / "results.json")
    assert [m.case for m in read.measured] == [case for part in cases.values() for case in part]
    assert all(e.status == "ok" and e.seconds for m in read.measured for e in m.entries)
    assert read.measured[0].entries == read.measured[4].entries  # the same work is measured once
    text = (tmp_path / "results.md").read_text()
    assert "| 5-6-1, m = 70, batches of 16 |" in text
    assert (tmp_path / "time-m.png").read_bytes().startswith(b"\x89PNG")
    again = tmp_path / "again"
    done = CliRunner().invoke(command.main, ["--report", str(tmp_path / "results.json"), "--out", str(again)])
    assert done.exit_code == 0, done.output
    assert (again / "results.md").read_text() == text


@pytest.mark.parametrize(
    ("case", "method", "make_wrong"),
    [
        (STEP, "loss_and_gradients", without_a_sample),
        (EPOCH, "train_epoch", lambda real: lambda self, *args: 1.01 * real(self, *args)),
        (FORWARD, "forward", lambda real: lambda self, *args: real(self, *args) * np.float32(1.0001)),
    ],
    ids=["step", "epoch", "forward"],
)
def test_wrong_peer_is_not_timed(here, monkeypatch, tmp_path, case, method, make_wrong):
    monkeypatch.setattr(ComposedEngine, method, make_wrong(getattr(ComposedEngine, method)))
    monkeypatch.setattr(command, "cases_of", lambda part, quick: (case,))
    arguments = ["--out", str(tmp_path), "--peers", "numpy,scikit-learn", "--part", "epochs", "--rounds", "1"]
    done = CliRunner().invoke(command.main, arguments)
    assert done.exit_code == 1
    wrong, right = command.files.load(tmp_path / "results.json").measured[0].entries
    assert right.status == "ok"
    assert (wrong.status, wrong.rounds, wrong.seconds) == ("wrong", [], None)
    assert "**wrong**" in (tmp_path / "results.md").read_text()


def test_library_in_a_process_of_its_own():
    with peers_measure.Field(["numpy"], Cpu(), print, threads=1) as field:
        (measured,) = field.measure([STEP], 1, lambda case: 0.001)
        assert measured.entries[0].status == "ok", measured.entries[0].reason
        with pytest.raises(peers_measure.PeerError, match="ValueError: loss: expected one of"):
            field.ask("numpy", "start", replace(STEP, loss="binary"))
        field.workers["numpy"]._process.kill()
        with pytest.raises(peers_measure.PeerError, match="its process died"):
            field.ask("numpy", "turn", 0.001)
        assert field.measure([STEP], 1, lambda case: 0.001)[0].entries[0].status == "ok"


def test_floor_is_measured_by_right_arithmetic(monkeypatch):
    sweeps = floor._sweeps(*floor.ACTIVATIONS["tanh"])
    rng = np.random.default_rng(0)
    Z, (b, w) = rng.standard_normal((3, 40), np.float32), rng.standard_normal((2, 3), np.float32)
    A, dZ, z2, dw, db = (np.empty(shape, np.float32) for shape in ((3, 40), (3, 40), 40, 3, 3))
    sweeps(Z, A, dZ, b, w, z2, dw, db, 1, True)
    right = np.tanh(Z + b[:, None])
    np.testing.assert_allclose(A, right, atol=1e-6)
    np.testing.assert_allclose(dZ, np.outer(w, w @ right) * (1 - right * right), atol=1e-5)
    monkeypatch.setattr(floor, "SECONDS", 0.001)
    monkeypatch.setattr(floor, "PRODUCT_SIZE", 64)
    monkeypatch.setattr(floor, "ACTIVATIONS", {"tanh": floor.ACTIVATIONS["tanh"]})
    rates = floor.measure(1)
    assert rates["flops_per_second"] > 0
    assert 0 < rates["step_ns"]["tanh"] < 100


def test_committed_results_can_be_read():
    files = list((ROOT / "bench" / "results").glob("*/peers*/results.json"))
    assert files
    for path in files:
        assert command.files.load(path).measured


def test_committed_results_of_the_estimators_are_their_table():
    from bench.estimators.__main__ import markdown

    for path in (ROOT / "bench" / "results").glob("*/estimators/results.json"):
        results = json.loads(path.read_text(encoding="utf-8"))
        assert path.with_suffix(".md").read_text(encoding="utf-8") == markdown(results["machine"], results["rows"])


# Many networks at once ------------------------------------------------------------------------------------------------


@pytest.fixture
def few_networks(monkeypatch):
    """A tiny case of `bench.many`, by its name."""
    from bench.many.cases import CASES, breast_cancer
    from bench.many.cases import Case as ManyCase

    monkeypatch.setitem(CASES, "three", ManyCase(3, (4,), breast_cancer, 100, 2, 2))
    return "three"


@pytest.mark.parametrize("library", ["fit_many", "one after the other", "jax.vmap"])
def test_many_networks_train_the_same_thing(few_networks, library):
    from bench.many.libraries import check, measure

    if library == "jax.vmap":
        pytest.importorskip("jax")
    ours, theirs = (measure(name, few_networks) for name in ("fit_many", library))
    assert theirs["seconds"] > 0
    np.testing.assert_allclose(theirs["losses"], ours["losses"][: len(theirs["losses"])], rtol=1e-4)
    check(np.array(ours["losses"]), np.array(theirs["losses"]), library)


def test_many_networks_of_another_training_are_refused():
    from bench.many.libraries import check

    with pytest.raises(AssertionError, match="jax.vmap: the mean loss is"):
        check(np.ones(3), np.full(3, 1.1), "jax.vmap")


def test_the_table_and_the_chart_of_many_networks(tmp_path):
    from bench.many.__main__ import draw, markdown, row

    runs = {
        library: [{"seconds": seconds * turn, "losses": [1.0, 2.0]} for turn in (1, 2, 3)]
        for library, seconds in {"fit_many": 1e-6, "jax.vmap": 5e-6}.items()
    }
    rows = [row("some", runs)]
    assert rows[0]["seconds"] == {"fit_many": 2e-6, "jax.vmap": 1e-5}
    machine = {"device": "a CPU", "backend": "numba-cpu", "threads": 2, "rounds": 3, "versions": {"jax": "1"}}
    assert markdown(machine, rows).splitlines()[-1] == "| some | 2 | 10 (5.0) |"
    draw(rows, tmp_path / "many.png")
    assert (tmp_path / "many.png").stat().st_size > 1000
