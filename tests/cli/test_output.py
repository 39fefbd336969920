"""What is printed may have no reader, no room or no character: nothing is lost by it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from fusedmlp.cli.splits import split_rows
from fusedmlp.training import progress


def fusedmlp(*arguments, env=None, **keywords):
    """Run the command in a process, on the backend that starts soonest."""
    command, env = [sys.executable, "-m", "fusedmlp", *arguments], (env or os.environ) | {"FUSEDMLP_BACKEND": "numpy"}
    return subprocess.run(
        command, capture_output="stdout" not in keywords, check=False, timeout=600, env=env, **keywords
    )


def test_a_reader_that_has_gone_costs_no_model(tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    result = fusedmlp(
        *("train", "iris", "--epochs", "2", "--out", "m.safetensors", "--plot", "p.png"),
        cwd=tmp_path,
        stdout=writing,
        stderr=subprocess.PIPE,
    )
    os.close(writing)
    assert (result.returncode, result.stderr) == (0, b"")
    assert (tmp_path / "m.safetensors").stat().st_size > 1000
    assert (tmp_path / "p.png").stat().st_size > 1000


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no full device here")
def test_a_full_disk_is_an_error_after_the_model_is_saved(tmp_path):
    with open("/dev/full", "wb") as full:
        result = fusedmlp(
            *("train", "iris", "--epochs", "2", "--out", "m.safetensors"),
            cwd=tmp_path,
            stdout=full,
            stderr=subprocess.PIPE,
        )
    assert result.returncode == 2
    assert b"No space left" in result.stderr
    assert (tmp_path / "m.safetensors").stat().st_size > 1000


def test_an_old_metrics_file_survives_a_failure(run, tmp_path):
    run("train", "iris", "--epochs", "2", "--metrics", "m.jsonl")
    before = (tmp_path / "m.jsonl").read_text()
    assert len(before.splitlines()) == 2
    diverging = ("train", "diabetes", "--optimizer", "sgd", "--learning-rate", "1e30", "--metrics", "m.jsonl")
    result = fusedmlp(*diverging, cwd=tmp_path)
    assert result.returncode == 2
    assert b"in epoch 1 " in result.stderr
    assert (tmp_path / "m.jsonl").read_text() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.jsonl"]
    run("train", "iris", "--epochs", "3", "--metrics", "m.jsonl")
    assert [json.loads(line)["epoch"] for line in (tmp_path / "m.jsonl").read_text().splitlines()] == [1, 2, 3]


def test_an_encoding_without_the_characters(tmp_path):
    environment = os.environ | {"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}
    (tmp_path / "d.csv").write_text("a,y\n" + "1,Łódź\n2,Rome\n" * 20, encoding="utf-8")
    for arguments in (
        ("train", "--help"),
        ("train", "d.csv", "--target", "y", "--epochs", "2", "--out", "m.safetensors"),
    ):
        result = fusedmlp(*arguments, cwd=tmp_path, env=environment)
        assert (result.returncode, result.stderr) == (0, b"")
    result = fusedmlp("predict", "m.safetensors", "d.csv", "--proba", cwd=tmp_path, env=environment)
    assert result.returncode == 0
    assert "probability_\\u0141\u00f3d\\u017a".encode("cp1252") in result.stdout


@pytest.mark.parametrize(("option", "meant"), [("--lr", "--learning-rate"), ("--seed", "--random-state")])
def test_names_of_other_programs(option, meant):
    result = fusedmlp("train", "iris", option, "1")
    assert result.returncode == 2
    assert f"did you mean {meant}?" in result.stderr.decode()


def test_lines_of_progress_without_a_terminal(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    result = fusedmlp("train", "iris", "--epochs", "20", cwd=tmp_path)
    assert result.stderr == b""
    from click.testing import CliRunner

    from fusedmlp.cli.commands import cli

    result = CliRunner().invoke(cli, ["train", "iris", "--epochs", "20"])
    lines = result.stderr.splitlines()
    assert len(lines) == 10
    assert lines[0].startswith("numba-cpu: epoch 2 of 20, 0 s, loss ")
    assert ", held-out " in lines[-1]


def test_a_narrow_terminal_keeps_every_digit(run, monkeypatch):
    monkeypatch.setattr("fusedmlp.cli.report.PIPE_WIDTH", 60)
    lines = run("train", "iris", "--epochs", "2").splitlines()
    cells = dict(line.split(maxsplit=1) for line in lines if line.startswith(("backend", "seconds", "samples")))
    assert cells["backend"] == "numba-cpu"
    assert all(len(line) <= 80 and "…" not in line for line in lines)


@pytest.mark.parametrize("sizes", [[50, 50, 1], [50, 30, 20, 1, 1], [60, 2, 2], [5] * 20, [90, 10], [3] * 40])
def test_every_class_with_enough_rows_has_its_share(sizes):
    classes = np.repeat(np.arange(len(sizes)), sizes)
    np.random.default_rng(0).shuffle(classes)
    train, test = split_rows(len(classes), 0.2, classes, 0)
    assert len(test) == round(0.2 * len(classes))
    assert sorted([*train, *test]) == list(range(len(classes)))
    held_out = np.bincount(classes[test], minlength=len(sizes))
    for size, count in zip(sizes, held_out, strict=True):
        if size >= 20:
            assert abs(count - 0.2 * size) < 1.01
