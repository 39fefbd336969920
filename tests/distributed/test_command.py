"""The command line under mpiexec."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from click.testing import CliRunner

from fusedmlp import Network, Predictor
from fusedmlp.cli.commands import cli
from mpi_jobs import answer, run_job

TRAIN = ("-m", "fusedmlp", "train", "wine", "--epochs", 3, "--hidden", 8, "--dtype", "float64")


def test_train_is_quiet_on_all_ranks_but_the_first(tmp_path):
    """It prints what one process prints, and comes to the same weights."""
    files = [tmp_path / f"2{suffix}" for suffix in (".safetensors", ".jsonl", ".png")]
    options = zip(("--out", "--metrics", "--plot"), files, strict=True)
    result, _ = run_job(2, *TRAIN, *(word for option in options for word in option))
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert len(files[1].read_text().splitlines()) == 3
    assert files[2].stat().st_size > 1000
    alone = CliRunner().invoke(cli, [*map(str, TRAIN[2:]), "--out", str(tmp_path / "1.safetensors")])
    assert alone.exit_code == 0
    for stdout in (result.stdout, alone.stdout):
        assert stdout.count("data: ") == 1
        assert stdout.count("numba-cpu") == 2  # a row of the table, and the model's name
    weights = [Network.load(tmp_path / f"{ranks}.safetensors").parameters.flat for ranks in (1, 2)]
    np.testing.assert_allclose(*weights, rtol=1e-9, atol=1e-9)


def test_an_error_ends_the_job_with_one_message(tmp_path):
    result, seconds = run_job(2, *TRAIN, "--out", tmp_path / "missing" / "m.safetensors")
    assert result.returncode == 2
    assert result.stderr.count("--out: the folder") == 1
    assert seconds < 20


OPTIONS = ["--hidden", "8", "--dtype", "float64", "--epochs", "4", "--schedule", "constant"]


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """Commands of several networks, and with checkpoints: (what each prints in one process, on each of two ranks)."""
    folder = tmp_path_factory.mktemp("commands")
    outputs = []
    for name in ("alone", "together"):
        files = [str(folder / f"{name}-{number}") for number in range(5)]
        lines = [
            ["train", "wine", *OPTIONS, "--members", "3", "--out", files[0]],
            ["train", "wine", *OPTIONS, "--folds", "3", "--out", files[1]],
            ["search", "wine", *OPTIONS, "--grid", "hidden=4,8,2", "--folds", "2", "--halving", "--out", files[2]],
            ["train", "wine", *OPTIONS, "--checkpoint", files[3], "--checkpoint-every", "7 batches"],
            ["resume", files[3], "--epochs", "6", "--out", files[4]],
        ]
        outputs.append((lines, files))
    texts = [CliRunner().invoke(cli, line, catch_exceptions=False).stdout for line in outputs[0][0]]
    return texts, answer(2, "commands.py", json.dumps(outputs[1][0])), outputs[0][1], outputs[1][1]


def without_times(text):
    """What is printed, without the last columns of tables, which are times and speeds, and without files."""
    dropped, kept = 0, []
    for line in text.splitlines():
        cells = re.split(r"  +", line.strip())
        dropped = 1 + ("samples/s" in line) if "seconds" in line else dropped
        kept.append([cell for cell in cells[: len(cells) - dropped] if "/" not in cell])
    return kept


def test_commands_of_many_networks_print_what_one_process_prints(commands):
    alone, together, *_ = commands
    for ours, quiet, theirs in zip(*together, alone, strict=True):
        assert quiet == ""
        assert without_times(ours) == without_times(theirs)
        assert len(re.findall(r"\d\.\d{3}", repr(without_times(theirs)))) > 2


def test_commands_of_several_ranks_write_the_models_of_one(commands):
    _, _, alone, together = commands
    for number in (0, 1, 2, 4):
        ours, theirs = (Predictor.load(files[number]) for files in (together, alone))
        for mine, other in zip(ours.members, theirs.members, strict=True):
            np.testing.assert_allclose(mine.parameters.flat, other.parameters.flat, rtol=1e-9, atol=1e-9)
        if number == 0:
            assert [net.parameters.flat.tobytes() for net in ours.members] == [
                net.parameters.flat.tobytes() for net in theirs.members
            ]


def test_bench_comm_prints_a_table_and_writes_it(tmp_path):
    path = tmp_path / "comm.json"
    result, _ = run_job(2, "-m", "fusedmlp", "bench-comm", "--out", path)
    assert result.returncode == 0, result.stderr
    assert "2 ranks, " in result.stdout
    comm = json.loads(path.read_text())
    assert comm["ranks"] == 2
    assert [time["n_bytes"] for time in comm["times"]] == [8 << k for k in range(22)]
    assert all(time["seconds"] > 0 for time in comm["times"])
