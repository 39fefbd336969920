"""Checkpoints that several processes write, and trainings that go on from them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from fusedmlp.files.checkpoint_files import load_checkpoint
from mpi_jobs import PROGRAMS, answer, mpiexec, run_job


def test_two_ranks_go_on_as_two_or_three_or_one(tmp_path):
    assert answer(3, "checkpoints.py", tmp_path) == {}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    return answer(2, "checkpoint_errors.py", tmp_path_factory.mktemp("checkpoints"))


MESSAGES = {
    "no folder": ("FileNotFoundError", "No such file or directory: '"),
    "a folder": ("ValueError", "expected the name of a new file or of a regular one; got a folder"),
    "nothing on one rank": (
        "ValueError",
        "checkpoint: expected the same on all ranks; got 'a file' on rank 0; None on rank 1",
    ),
    "other intervals": ("ValueError", "checkpoint_every: expected the same on all ranks; got 1 on rank 0; 2 on rank 1"),
    "no path": ("ValueError", "checkpoint: expected a path or a Checkpoint; got 3"),
    "no interval": ("ValueError", "checkpoint_every: expected a number of epochs"),
    "a state": ("ValueError", "state: expected None where checkpoint is given"),
    "full disk": ("OSError", "No space left on device: '"),
    "another training": ("CheckpointError", "the checkpoint is another training's: alpha: 0.0 there, 0.1 here"),
    "other samples": ("CheckpointError", "the checkpoint is another training's: X: (4, 40) numbers with the checksum"),
    "damaged": ("CheckpointError", "run: the file is damaged or truncated"),
}


@pytest.mark.parametrize("mistake", MESSAGES)
def test_a_mistake_is_the_same_error_on_every_rank(outcomes, mistake):
    messages, unchanged = outcomes[mistake]
    (kind, expected), (got_kind, text) = MESSAGES[mistake], messages[0]
    assert got_kind == kind
    assert expected in text
    assert messages[1] == messages[0]
    assert unchanged is (2 if mistake == "full disk" else True)  # the last epoch that was written


def test_a_training_goes_on_where_the_disk_was_full_though_one_rank_sees_no_file(outcomes):
    assert outcomes["went on"] is True
    assert outcomes["over"] is True


@pytest.mark.parametrize(
    ("when", "error", "batch"), [("end of an epoch", "KeyboardInterrupt", 0), ("middle", "TerminatedError", 2)]
)
def test_a_signal_to_one_rank_lets_all_write_down_the_same_batch(outcomes, when, error, batch):
    assert outcomes[when] == [[error, 2, batch, True]] * 2


def test_what_rank_0_keeps_with_it_is_written(outcomes):
    assert outcomes["extra"] == {"note": "of rank 0"}


def test_a_rank_that_is_killed_leaves_the_last_checkpoint(tmp_path):
    path = tmp_path / "run"
    result, seconds = run_job(2, PROGRAMS / "checkpointed.py", path, "kill", timeout=60)
    assert result.returncode not in (0, 143), result.stderr
    assert seconds < 10 + 20
    found = load_checkpoint(path)
    assert (found.state["epoch"], found.state["batch"], found.finished) == (4, 6, False)


def test_a_sigterm_to_the_job_writes_a_checkpoint(tmp_path):
    path = tmp_path / "run"
    command = [mpiexec(), "-n", "2", sys.executable, str(PROGRAMS / "checkpointed.py"), str(path), "wait"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, env=os.environ | {"PYTHONWARNINGS": "error"}, text=True) as job:
        assert job.stdout.readline() == "ready\n"
        job.send_signal(signal.SIGTERM)
        _, err = job.communicate(timeout=20)
    assert job.returncode == 143, err
    assert err.count(f"{path}: a checkpoint of epoch ") == 1
    assert load_checkpoint(path).state["epoch"] >= 5
