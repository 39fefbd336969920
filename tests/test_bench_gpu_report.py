"""The report of a run on a GPU, from the numbers as they are saved, and where the newest one is shown."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # bench/ is a package of the checkout, not of the wheel

from bench.gpu import __main__ as command  # noqa: E402
from bench.gpu import device, rates, report, results  # noqa: E402
from bench.gpu.cases import GROUPS  # noqa: E402
from bench.gpu.results import GpuEntry, GpuResults  # noqa: E402
from bench.peers.results import Measured  # noqa: E402
from bench.results import ResultsError  # noqa: E402

RATES = {"bytes_per_second": 1e12, "strict_flops_per_second": 1e13, "tf32_flops_per_second": 1e14}


def some_results():
    errors = {"J": 1e-8, "dW1": 2e-7}
    rounds = [1.2e-3, 1.26789012e-3, 1.3e-3]
    step = [
        GpuEntry("fused", "ok", "", rounds[1], rounds, None, errors, 12_345_678, "fused, narrow"),
        GpuEntry("torch", "ok", "", 2.5e-3, [2.5e-3] * 3, None, errors, 10**9),
        GpuEntry("jax", "ok", "", 2.0e-3, [2.0e-3] * 3, None, errors),
    ]
    epoch = [GpuEntry("fused", seconds=18e-6, rounds=[18e-6]), GpuEntry("torch", seconds=180e-6, rounds=[180e-6])]
    tests = {"status": "failed", "passed": 3, "failed": 1, "skipped": 0, "failures": ["t.py::a"], "seconds": 9.87654321}
    memcheck = {"status": "passed", "errors": 0, "covered": "24 of 24 shapes", "seconds": 5.0, "tail": []}
    sigmoid = {"n": 8, "m": 9, "seconds": 1e-3, "bytes": 10**9, "share_of_copy": 0.93, "target": 0.9}
    return GpuResults(
        {"name": "NVIDIA X", "compute_capability": "9.0", "driver": "580.1, CUDA 13.0", "cuda_runtime": "13.0"},
        {"python": "3.12", "fused": "fusedmlp 1", "torch": "torch 2"},
        "2031-02-03",
        limit_seconds=480.0,
        seconds=401.23456,
        tests={**tests, "tail": ["the end"]},
        sanitizer={"memcheck": memcheck},
        rates=RATES,
        primitives={"sigmoid": sigmoid},
        measured=[
            Measured(GROUPS["784-1024"].cases[0], list(step), 1e-3),
            Measured(GROUPS["30-64"].cases[0], list(epoch), 0.0),
        ],
    )


def row(text, *starts):
    """The cells of the first row that starts so."""
    line = next(line for line in text.splitlines() if line.startswith("| " + " | ".join(starts)))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_report_is_written_from_what_is_saved(tmp_path):
    results.save(some_results(), tmp_path / "gpu.json")
    saved = results.load(tmp_path / "gpu.json")
    results.save(saved, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == (tmp_path / "gpu.json").read_text()
    text = report.markdown(saved)
    assert row(text, "784-1024-1, m = 65,536")[1:] == [
        "1.27 [1.20, 1.30]",
        "2.50 [2.50, 2.50] (2.0×)",
        "2.00 [2.00, 2.00] (1.6×)",
        "jax 1.58×",
        "1.3×, best peer",
    ]
    assert row(text, "30-64-1, m = 569, batches of 32")[1:] == [  # 18 of them an epoch: 1 µs and 10 µs a step
        "0.00100 [0.00100, 0.00100]",
        "0.0100 [0.0100, 0.0100] (10×)",
        "torch 10.0×",
        "5.0×, torch",
    ]
    assert "- Tests on the device: failed: 3 passed, 1 failed, 0 skipped, 10 s." in text
    assert "    the end" in text
    assert "- compute-sanitizer memcheck: passed, 0 errors, 24 of 24 shapes covered, 5 s." in text
    assert "| 784-1024-1, m = 65,536 | fused, narrow |" in text
    assert "| 784-1024-1, m = 65,536 | 12 | 1,000 |" in text
    assert "| sigmoid | 8 × 9 | 1.00 | 1,000 | 93% | 90% |" in text
    least = rates.least_seconds(saved.measured[0].case, RATES, "middle")
    assert f"({least / 1.268e-3:.0%} reached)" in text
    assert saved.mistakes() == ["tests: 1 failed"]
    target = tmp_path / "gpu.md"
    done = CliRunner().invoke(report.main, [str(tmp_path / "gpu.json"), "--markdown", str(target)])
    assert done.exit_code == 0, done.output
    assert target.read_text() == text
    assert CliRunner().invoke(report.main, [str(tmp_path / "gpu.json")]).output == text


@pytest.mark.parametrize(
    ("text", "message"), [(None, "No such file"), ("{}", "got something else"), ("[", "got something")]
)
def test_what_is_no_result_is_refused(tmp_path, text, message):
    path = tmp_path / "gpu.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ResultsError, match=message):
        results.load(path)
    done = CliRunner().invoke(report.main, [str(path)])
    assert done.exit_code == 2
    assert message in done.output


def test_command_ends_with_1_where_something_is_wrong(monkeypatch, tmp_path):
    monkeypatch.setattr(device.Cuda, "unavailable_reason", classmethod(lambda cls: None))
    monkeypatch.setattr(command, "run", lambda *a: some_results())
    done = CliRunner().invoke(command.main, ["--out", str(tmp_path)])
    assert done.exit_code == 1
    assert "wrong: tests: 1 failed" in done.stderr
    assert (tmp_path / "nvidia-x" / "gpu.md").exists()


# Where results are shown ----------------------------------------------------------------------------------------------


def test_page_shows_the_newest_results(tmp_path):
    page = report.PAGE.read_text(encoding="utf-8")
    assert report.with_section(page, report.section()) == page, "run: python -m bench.gpu.report --docs"
    assert report.section(tmp_path) == report.NOTHING
    for name, date in (("a", "2031-02-03"), ("b", "2030-01-01")):
        results.save(replace(some_results(), date=date), tmp_path / name / "gpu.json")
    text = report.section(tmp_path)
    assert text.startswith("NVIDIA X, 2031-02-03:")
    assert "| 784-1024-1, m = 65,536 | 1.27 ms | 1.58× jax | 1.3× |" in text
    assert text.endswith("[a/gpu.md](../bench/results/a/gpu.md).")
    assert text in report.with_section(page, text)
    with pytest.raises(ResultsError, match="got 0"):
        report.with_section("no marks", text)
