"""The command line under mpiexec."""

from __future__ import annotations

import json

import numpy as np
from click.testing import CliRunner

from fusedmlp import Network
from fusedmlp.cli.commands import cli
from mpi_jobs import run_job

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


def test_options_for_one_process_are_refused():
    result, _ = run_job(2, *TRAIN, "--members", 3)
    assert result.returncode == 2
    assert "--members is for one process" in result.stderr


def test_bench_comm_prints_a_table_and_writes_it(tmp_path):
    path = tmp_path / "comm.json"
    result, _ = run_job(2, "-m", "fusedmlp", "bench-comm", "--out", path)
    assert result.returncode == 0, result.stderr
    assert "2 ranks, " in result.stdout
    comm = json.loads(path.read_text())
    assert comm["ranks"] == 2
    assert [time["n_bytes"] for time in comm["times"]] == [8 << k for k in range(22)]
    assert all(time["seconds"] > 0 for time in comm["times"])
