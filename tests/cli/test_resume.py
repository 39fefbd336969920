"""``fusedmlp train --checkpoint`` and ``fusedmlp resume``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from fusedmlp import Network, Predictor
from fusedmlp.checkpoints import FileRecorder
from fusedmlp.cli.commands import cli
from fusedmlp.files.checkpoint_files import load_checkpoint

TRAIN = ["train", "iris", "--backend", "numpy", "--hidden", "8", "--epochs", "12", "--early-stopping"]


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run a command in a folder of its own: (status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        result = CliRunner().invoke(cli, list(arguments))
        return result.exit_code, result.stdout, result.stderr

    return run


@pytest.fixture
def stopped_after(monkeypatch):
    """Let a training be interrupted right after so many checkpoints."""
    write, left = FileRecorder.write, []

    def writing(self, *arguments):
        write(self, *arguments)
        if left:
            left[0] -= 1
            if not left[0]:
                left.clear()
                raise KeyboardInterrupt

    monkeypatch.setattr(FileRecorder, "write", writing)
    return left.append


def test_an_interrupted_training_comes_to_the_same_model(run, stopped_after, tmp_path):
    assert run(*TRAIN, "--out", "whole")[0] == 0
    stopped_after(5)
    status, _, err = run(*TRAIN, "--out", "model", "--checkpoint", "run", "--checkpoint-every", "2 batches")
    assert status == 130
    assert "interrupted in training; model was not written" in err
    assert not (tmp_path / "model").exists()
    status, out, err = run("resume", "run", "--out", "model", "--metrics", "lines", "--plot", "curves.png")
    assert status == 0, err
    assert "model of numpy: model" in out
    assert (tmp_path / "model").read_bytes() == (tmp_path / "whole").read_bytes()
    lines = [json.loads(line) for line in (tmp_path / "lines").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, len(lines) + 1))
    assert (tmp_path / "curves.png").stat().st_size > 1000
    # Once more: the training is over, and its files can still be had.
    again = run("resume", "run", "--out", "again", "--metrics", "more")
    assert again[0] == 0
    assert (tmp_path / "again").read_bytes() == (tmp_path / "whole").read_bytes()
    assert (tmp_path / "more").read_text() == (tmp_path / "lines").read_text()


def test_the_same_command_goes_on_too(run, stopped_after, tmp_path):
    assert run(*TRAIN, "--out", "whole")[0] == 0
    stopped_after(2)
    assert run(*TRAIN, "--out", "model", "--checkpoint", "run")[0] == 130
    assert run(*TRAIN, "--out", "model", "--checkpoint", "run")[0] == 0
    assert (tmp_path / "model").read_bytes() == (tmp_path / "whole").read_bytes()


def test_the_data_may_have_moved_but_not_changed(run, stopped_after, tmp_path):
    rows = [f"{i % 7},{(i * 5) % 11},{'ab'[i % 3 > 0]}" for i in range(60)]
    (tmp_path / "rows.csv").write_text("x,y,target\n" + "\n".join(rows))
    stopped_after(2)
    assert run("train", "rows.csv", "--backend", "numpy", "--checkpoint", "run", "--epochs", "5")[0] == 130
    (tmp_path / "rows.csv").rename(tmp_path / "moved.csv")
    status, _, err = run("resume", "run", "--out", "model")
    assert status == 2
    assert "rows.csv" in err
    assert run("resume", "run", "--data", "moved.csv", "--out", "model")[0] == 0
    assert Predictor.load(tmp_path / "model").feature_names_out
    stopped_after(1)
    content = (tmp_path / "run").read_bytes()
    (tmp_path / "moved.csv").write_text("x,y,target\n" + "\n".join([*rows[1:], "3,3,b"]))
    status, _, err = run("resume", "run", "--data", "moved.csv", "--out", "other")
    assert status == 2
    assert "the checkpoint is another training's: X: " in err
    assert (tmp_path / "run").read_bytes() == content


def test_bad_usage(run, tmp_path):
    for extra in (["--folds", "3"], ["--members", "2"], ["--all-backends"]):
        status, _, err = run(*TRAIN, *extra, "--checkpoint", "run")
        assert status == 2
        assert "exclude each other" in err
    assert "--checkpoint-every is for --checkpoint" in run(*TRAIN, "--checkpoint-every", "3")[2]
    assert (
        "--checkpoint-every: expected a number of epochs"
        in run(*TRAIN, "--checkpoint", "run", "--checkpoint-every", "often")[2]
    )
    assert "no such file" in run("resume", "none")[2]
    net = Network([2, 1], backend="numpy", random_state=0)
    net.fit([[0.0, 1.0, 2.0], [1.0, 0.0, 2.0]], [0, 1, 1], epochs=1, checkpoint=tmp_path / "bare")
    assert (
        "expected a checkpoint of fusedmlp train; this one goes on by the same call of fit" in run("resume", "bare")[2]
    )
    net.save(tmp_path / "model")
    assert "a model, as Network.save and fusedmlp train --out write it" in run("resume", "model")[2]
    assert "a training that goes on by fusedmlp resume" in run("predict", "bare", "iris")[2]


@pytest.mark.slow
def test_sigterm_ends_with_143(tmp_path):
    command = [sys.executable, "-m", "fusedmlp", "train", "digits", "--backend", "numpy", "--epochs", "100000"]
    with subprocess.Popen(
        [*command, "--checkpoint", "run"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    ) as process:
        while not (tmp_path / "run").exists():
            time.sleep(0.05)
            assert process.poll() is None
        os.kill(process.pid, signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "run: a checkpoint of epoch" in err
    assert load_checkpoint(tmp_path / "run").extra["command"]["data"] == "digits"
