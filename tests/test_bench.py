"""The benchmarks: what they refuse to time, what they run, and what the report makes of the results."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tomllib
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

from bench import charts, grid, operands, operations, report, results, table  # noqa: E402
from bench.grid import Shape  # noqa: E402
from bench.measure import WrongResultError, measure, plan_rounds, too_large  # noqa: E402

SHAPE = Shape(m=2500, n2=16, n1=5)


class Stopwatch:
    """The part of pytest-benchmark's fixture that `measure` uses; it counts what it is asked to time."""

    def __init__(self) -> None:
        self.timed = 0
        self.extra_info = {}

    def pedantic(self, call, rounds, iterations):
        call()
        self.timed += 1


def without_last_sample(real):
    def wrong(self, *args, out=None, **kwargs):
        out = real(self, *args, out=out, **kwargs)
        out[:, -1] = 0.5
        return out

    return wrong


def with_nan(real):
    def wrong(self, *args, out=None, **kwargs):
        out = real(self, *args, out=out, **kwargs)
        out[0, 7] = np.nan
        return out

    return wrong


def forward_without_bias(real):
    return lambda self, Z, activation, bias=None, out=None: real(self, Z, activation, None, out)


def in_double(real):
    return lambda self, parameters, X: real(self, parameters, X).astype(np.float64)


def without_a_sample(real):
    def wrong(self, parameters, X, Y, gradients, *args):
        return real(self, parameters, X[:, :-1], Y[:, :-1], gradients, *args)

    return wrong


def loss_off_by_a_little(real):
    return lambda self, *args: real(self, *args) * 1.001


def step_of_another_time(real):
    def wrong(self, xp, theta, gradient):
        self.t += 1
        real(self, xp, theta, gradient)

    return wrong


WRONG = [
    (operations.Matmul, NumpyBackend, "matmul", without_last_sample),
    (operations.Matmul, NumpyBackend, "matmul", with_nan),
    (operations.Sigmoid, NumpyBackend, "sigmoid", without_last_sample),
    (operations.Sigmoid, NumpyBackend, "sigmoid", lambda real: lambda self, Z, out: np.tanh(Z, out=out)),
    (operations.FusedBackward, NumpyBackend, "fused_backward", without_last_sample),
    (
        operations.FusedBackward,
        NumpyBackend,
        "fused_backward",
        lambda real: lambda self, W, dZ, A, out: real(self, W, dZ, A, "tanh", out),
    ),
    (operations.Forward, NumpyBackend, "activate", forward_without_bias),
    (operations.Forward, ComposedEngine, "forward", in_double),
    (operations.LossAndGradients, NumpyBackend, "fused_backward", without_last_sample),
    (operations.LossAndGradients, ComposedEngine, "loss_and_gradients", without_a_sample),
    (operations.LossAndGradients, ComposedEngine, "loss_and_gradients", loss_off_by_a_little),
    (operations.AdamStep, OptimizerState, "step", step_of_another_time),
    (operations.AdamStep, ComposedEngine, "_gradient_pass", without_a_sample),
]


# What is measured -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("operation", "owner", "method", "make_wrong"), WRONG)
def test_wrong_result_is_not_timed(monkeypatch, operation, owner, method, make_wrong):
    monkeypatch.setattr(owner, method, make_wrong(getattr(owner, method)))
    stopwatch = Stopwatch()
    with pytest.raises(WrongResultError, match=f"{operation.name} on numpy at m2500"):
        measure(stopwatch, operation(SHAPE), NumpyBackend(), 0.001)
    assert not stopwatch.timed


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [SHAPE, Shape(m=1, n2=1), Shape(m=10_007, n2=33, n3=10)], ids=str)
@pytest.mark.parametrize("operation", operations.OPERATIONS, ids=lambda operation: operation.name)
def test_right_result_is_timed(operation, shape, dtype):
    stopwatch = Stopwatch()
    measure(stopwatch, operation(replace(shape, dtype=dtype)), NumpyBackend(), 0.001)
    assert stopwatch.timed == 1
    info = stopwatch.extra_info
    assert (info["operation"], info["backend"], info["dtype"]) == (operation.name, "numpy", dtype)
    assert (info["m"], info["n1"], info["n2"], info["n3"]) == (shape.m, shape.n1, shape.n2, shape.n3)
    assert info["engine"] == ("composed" if issubclass(operation, operations._Pass) else None)
    assert info["device"]
    assert info["threads"] >= 1
    assert "numpy" in info["versions"]


def test_time_includes_waiting_for_the_device(monkeypatch):
    waited = []
    monkeypatch.setattr(NumpyBackend, "synchronize", lambda self: waited.append(1))

    class Timer(Stopwatch):
        def pedantic(self, call, rounds, iterations):
            waited.clear()
            call()
            self.timed = len(waited)

    timer = Timer()
    measure(timer, operations.Sigmoid(SHAPE), NumpyBackend(), 0.001)
    assert timer.timed == 1


def test_flops_and_bytes():
    s = Shape(m=100, n2=7, n1=3, n3=2)
    counts = {o.name: (o(s).flops, o(s).bytes_moved) for o in operations.OPERATIONS}
    parameters = 3 * 7 + 7 + 7 * 2 + 2
    assert counts == {
        "matmul": (2 * 3 * 7 * 100, 4 * (21 + 300 + 700)),
        "sigmoid": (None, 4 * 1400),
        "fused_backward": ((2 * 2 - 1 + 3) * 700, 4 * (14 + 200 + 1400)),
        "forward": (2 * 100 * (21 + 14), 4 * (500 + parameters)),
        "loss_and_gradients": (2 * 100 * (2 * 21 + 3 * 14), 4 * (500 + 2 * parameters)),
        "adam_step": (2 * 100 * (2 * 21 + 3 * 14), 4 * (500 + 6 * parameters)),
    }


@pytest.mark.parametrize("m", [1, 2, 2048, 2049, 10_007, 2**20])
def test_checked_samples_leave_no_long_gap(m):
    columns = operands.checked_samples(m)
    assert columns[0] == 0
    assert columns[-1] == m - 1
    assert len(columns) == min(m, 2048)
    gaps = np.diff(columns)
    assert np.all(gaps >= 1)
    assert np.all(gaps <= max(2, m / 1000))


@pytest.mark.parametrize(
    ("call", "expected"),
    [(1e-5, (50, 200)), (1e-3, (50, 2)), (0.05, (10, 1)), (0.4, (3, 1)), (1.9, (3, 1)), (2.1, (1, 1))],
)
def test_rounds_fill_the_time(call, expected):
    assert plan_rounds(call, 0.5) == expected


# Sizes and backends ---------------------------------------------------------------------------------------------------


def test_grids_reach_from_end_to_end():
    full, quick = grid.full_grid(), grid.quick_grid("float64")
    assert {s.m for s in full} == {2**k for k in range(10, 21)}
    assert {s.n2 for s in full} == {16, 32, 64, 128, 256, 512, 1024, 2048, 4096}
    assert len(set(full)) == 99
    assert {replace(s, dtype="float32") for s in quick} < set(full)
    assert len(set(quick)) == len(quick)
    assert {s.m for s in quick if s.n2 == grid.FIXED_N2} == {2**k for k in range(10, 21, 2)}
    assert {s.n2 for s in quick if s.m == grid.FIXED_M} == {16, 64, 256, 1024, 4096}


def test_large_operands_are_refused():
    assert too_large(operations.Sigmoid(Shape(2**20, 4096))) == "operands of 32.0 GiB, more than 2 GiB"
    assert not any(too_large(operation(shape)) for operation in operations.OPERATIONS for shape in grid.quick_grid())
    assert not too_large(operations.AdamStep(Shape(2**20, 4096)))  # an engine does not keep the activations


def test_environment_variable_restricts_the_backends(monkeypatch):
    monkeypatch.setenv("FUSEDMLP_BACKEND", "numpy")
    assert grid.backends_to_measure() == ["numpy"]
    monkeypatch.setenv("FUSEDMLP_BACKEND", "numpy, numba-cpu")
    assert grid.backends_to_measure() == ["numpy", "numba-cpu"]
    monkeypatch.delenv("FUSEDMLP_BACKEND")
    assert grid.backends_to_measure() == grid.available_backends()
    monkeypatch.setenv("FUSEDMLP_BACKEND", "numpi")
    with pytest.raises(ValueError, match="numpi"):
        grid.backends_to_measure()


# A run ----------------------------------------------------------------------------------------------------------------


def run_bench(*arguments, backend="numpy"):
    command = [sys.executable, "-m", "pytest", "bench", "-p", "no:cacheprovider", *arguments]
    environment = {**os.environ, "FUSEDMLP_BACKEND": backend, "PYTHONPATH": str(ROOT / "src")}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(completed process, its JSON file) of a run over two values of m."""
    path = tmp_path_factory.mktemp("bench") / "new" / "run.json"
    done = run_bench("--quick", "-q", "-k", "m1024 or m4096", "--benchmark-quiet", f"--benchmark-json={path}")
    assert done.returncode == 0, done.stdout + done.stderr
    return done, path


def test_run_measures_every_operation(finished):
    run = results.load(finished[1])
    assert run.operations == [
        ("matmul", 1),
        ("sigmoid", 1),
        ("fused_backward", 1),
        ("fused_backward", 10),
        ("forward", 1),
        ("loss_and_gradients", 1),
        ("adam_step", 1),
    ]
    assert run.backends == ["numpy"]
    assert sorted({(r.m, r.n2) for r in run.results}) == [(1024, 128), (4096, 128)]
    assert all(r.rounds >= 3 and 0 < r.seconds < 1 for r in run.results)


def test_json_tells_nothing_about_the_host(finished):
    text = finished[1].read_text()
    assert platform.node() not in text
    assert str(ROOT) not in text
    run = json.loads(text)
    assert run["commit_info"] == {}
    assert set(run["machine_info"]) == {"system", "machine", "python_version", "cpu"}
    assert all(set(b["stats"]) == set(results.STATISTICS) for b in run["benchmarks"])


def test_report_of_a_run(finished, tmp_path):
    arguments = ["--markdown", tmp_path / "run.md", "--charts", tmp_path, "--json", tmp_path / "run.json"]
    done = CliRunner().invoke(report.main, [str(a) for a in (finished[1], *arguments)])
    assert done.exit_code == 0, done.output
    assert "### fused_backward, n3 = 10" in (tmp_path / "run.md").read_text()
    assert (tmp_path / "throughput-m.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "throughput-n2.png").exists()  # one value of n2 makes no line
    assert results.load(tmp_path / "run.json").results == results.load(finished[1]).results
    benchmarks = json.loads(finished[1].read_text())["benchmarks"]
    assert len((tmp_path / "run.json").read_text().splitlines()) == len(benchmarks) + 2


def test_report_without_options_prints_the_tables(finished):
    done = CliRunner().invoke(report.main, [str(finished[1])])
    assert done.exit_code == 0
    assert done.output == table.markdown(results.load(finished[1]))


def test_backends_take_turns_and_large_operands_are_skipped():
    done = run_bench("--collect-only", "-q", "-k", "m1048576-n2_16 and (matmul or sigmoid)", backend="numba-cpu,numpy")
    names = [line.split("::")[1] for line in done.stdout.splitlines() if "::" in line]
    assert names == [
        f"test_{operation}[m1048576-n2_16-{backend}]"
        for operation in ("matmul", "sigmoid")
        for backend in ("numba-cpu", "numpy")
    ]
    done = run_bench("-q", "-k", "m1048576-n2_4096 and sigmoid")
    assert "operands of 32.0 GiB, more than 2 GiB" in done.stdout
    assert "1 skipped" in done.stdout


def test_unknown_backend_is_one_line():
    done = run_bench("--quick", backend="numpi")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "FUSEDMLP_BACKEND: unknown backend 'numpi'" in done.stderr
    assert "Traceback" not in done.stderr


def test_file_that_cannot_be_written_is_known_before_the_run(tmp_path):
    (tmp_path / "file").touch()
    done = run_bench("--quick", f"--benchmark-json={tmp_path}/file/run.json")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "--benchmark-json: cannot write" in done.stderr


def test_plain_pytest_runs_no_benchmark():
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    assert options["testpaths"] == ["tests"]


# The report -----------------------------------------------------------------------------------------------------------


def result(backend="numpy", operation="matmul", m=1024, n2=128, milliseconds=2.0, n3=1, engine=None):
    return results.Result(
        operation=operation,
        backend=backend,
        engine=engine,
        m=m,
        n1=64,
        n2=n2,
        n3=n3,
        dtype="float32",
        samples_per_call=m,
        bytes_moved=3_000_000,
        flops=None if operation == "sigmoid" else 8_000_000,
        device="NVIDIA H100" if backend == "cupy" else "AMD EPYC",
        threads=None if backend == "cupy" else 2,
        versions="numpy 2",
        seconds=milliseconds / 1e3,
        rounds=5,
    )


def rows(markdown, heading):
    """The cells of the table under a heading."""
    body = markdown.split(f"### {heading}\n")[1].split("\n### ")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in body.splitlines() if line[:1] == "|"]


def test_table_has_a_row_per_shape_and_columns_per_backend():
    run = results.Run(
        [
            result("cupy", milliseconds=0.01),
            result("numpy"),
            result("numpy", m=8192, n2=16, milliseconds=0.5),
            result("numpy", m=4096, milliseconds=8),
        ],
        {},
    )
    header, _, *body = rows(table.markdown(run), "matmul")
    assert header == ["m", "n2", "numpy: ms", "samples/s", "GFLOP/s", "cupy: ms", "samples/s", "GFLOP/s", "× numpy"]
    assert body == [
        ["1024", "128", "2.00", "512 k", "4.00", "0.0100", "102 M", "800", "200"],
        ["4096", "128", "8.00", "512 k", "1.00", "", "", "", ""],
        ["8192", "16", "0.500", "16.4 M", "16.0", "", "", "", ""],
    ]


def test_table_gives_bandwidth_where_memory_is_the_bound_and_names_the_engine():
    run = results.Run([result(operation="sigmoid"), result(operation="forward", engine="fused")], {})
    text = table.markdown(run)
    assert rows(text, "sigmoid")[0][-1] == "GB/s"
    assert rows(text, "sigmoid")[2][-1] == "1.50"
    assert rows(text, "forward")[0][2] == "numpy (fused): ms"
    assert "× numpy" not in rows(text, "forward")[0]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.01234, "0.0123"),
        (999.4, "999"),
        (999.6, "1.00 k"),
        (1234, "1.23 k"),
        (9.99e5, "999 k"),
        (5e9, "5.00 G"),
    ],
)
def test_numbers_have_three_digits(value, text):
    assert table.with_prefix(value) == text


def test_charts_have_a_panel_per_operation_and_a_line_per_backend(monkeypatch, tmp_path):
    from matplotlib.figure import Figure

    drawn = {}
    real = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, path, **kw: (drawn.update({path.name: self}), real(self, path, **kw))[1]
    )
    sweep = [(2**k, 128) for k in (10, 14, 20)] + [(8192, n2) for n2 in (16, 256, 4096)]
    measured = [
        result(backend, operation, m, n2, milliseconds=m * n2 / 1e6)
        for backend in ("numpy", "numba-cpu", "cupy", "another")
        for operation in ("matmul", "forward")
        for m, n2 in sweep
    ]
    paths = charts.draw(results.Run(measured, {}), tmp_path / "new")
    assert [path.name for path in paths] == ["throughput-m.png", "throughput-n2.png"]
    for name, sizes, fixed in (
        ("throughput-m.png", [2**10, 2**14, 2**20], "n2 = 128"),
        ("throughput-n2.png", [16, 256, 4096], "m = 8192"),
    ):
        figure = drawn[name]
        heading = figure.get_suptitle()
        assert all(part in heading for part in ("n1 = 64", fixed, "n3 = 1", "float32", "AMD EPYC, 2 threads"))
        assert "cupy: NVIDIA H100" in heading
        panels = {panel.get_title(): panel for panel in figure.axes if panel.axison}
        assert list(panels) == ["matmul", "forward"]
        for panel in panels.values():
            assert panel.get_xscale() == panel.get_yscale() == "log"
            assert [list(line.get_xdata()) for line in panel.lines] == [sizes] * 4
            assert len({line.get_color() for line in panel.lines}) == 4
            assert len({line.get_marker() for line in panel.lines}) == 4


def test_chart_of_a_full_grid_takes_the_usual_sweeps(tmp_path):
    run = results.Run([result(m=s.m, n2=s.n2) for s in grid.full_grid()], {})
    assert charts._longest_sweep(run.results, "n2", grid.FIXED_N2) == 128
    assert charts._longest_sweep(run.results, "m", grid.FIXED_M) == 8192


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        ("not JSON", "expected the JSON of a benchmark run"),
        ("[]", "other JSON"),
        ('{"benchmarks": [{"extra_info": {}, "stats": {}}]}', "other JSON"),
        ('{"benchmarks": []}', "got none"),
    ],
)
def test_report_of_something_else_is_bad_usage(tmp_path, content, message):
    path = tmp_path / "run.json"
    if content is not None:
        path.write_text(content)
    done = CliRunner().invoke(report.main, [str(path), "--markdown", str(tmp_path / "run.md")])
    assert done.exit_code == 2
    assert message in done.output
    assert not (tmp_path / "run.md").exists()
