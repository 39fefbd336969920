"""What trusted systems promise of their files and processes: a few of each in the suite, many by ``make soak``."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fusedmlp import Network
from fusedmlp.data.reading import read_table
from fusedmlp.errors import CheckpointError
from fusedmlp.files import atomic
from fusedmlp.files.checkpoint_files import CheckpointFile, load_checkpoint, save_checkpoint
from fusedmlp.training.state import TrainingState
from machine import require
from mpi_jobs import PROGRAMS, run_job

GENERATOR = np.random.default_rng(3)
X = GENERATOR.normal(size=(3, 40))
Y = (X[:1] > 0).astype(float)
AWKWARD = Path(__file__).parents[1] / "data" / "awkward"


def trained(path, **arguments):
    net = Network([3, 4, 1], backend=require("numpy"), random_state=2)
    net.fit(X, Y, **({"epochs": 3, "batch_size": 8, "checkpoint": path} | arguments))
    return net


@pytest.fixture
def small(tmp_path):
    """A checkpoint of a few kilobytes."""
    path = tmp_path / "run"
    trained(path)
    return path


# Killed while they save -----------------------------------------------------------------------------------------------

SAVER = """
import os, random, signal, sys, time
import numpy as np
from fusedmlp.files.checkpoint_files import CheckpointFile, load_checkpoint, save_checkpoint
path, kills = sys.argv[1], int(sys.argv[2])
choose = random.Random(1)
for kill in range(kills):
    child = os.fork()
    if not child:
        for number in range(10**9):
            save_checkpoint(path, CheckpointFile({}, {}, np.full(50_000, number % 97, "float32"), {}, False, {}))
    time.sleep(0.03 * choose.random())
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if os.path.exists(path):
        weights = load_checkpoint(path).weights
        assert len(weights) == 50_000 and len(set(weights.tolist())) == 1
    assert len(os.listdir(os.path.dirname(path))) <= 2, os.listdir(os.path.dirname(path))
print(os.path.exists(path))
"""


def test_kill_9_during_saves(soak, tmp_path):
    """The file has its old content or the new one, and at most one temporary file is left."""
    command = [sys.executable, "-c", SAVER, str(tmp_path / "run"), str(soak.kills)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


# Damaged files --------------------------------------------------------------------------------------------------------


def test_flipped_bits(soak, small):
    content, choose = small.read_bytes(), random.Random(4)
    for _ in range(soak.flips):
        damaged = bytearray(content)
        damaged[choose.randrange(len(content))] ^= 1 << choose.randrange(8)
        small.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            load_checkpoint(small)


def test_truncation_at_every_byte(soak, small):
    content = small.read_bytes()
    for length in range(0, len(content), soak.step):
        small.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            load_checkpoint(small)


@pytest.mark.parametrize(
    "change",
    [
        {"state": {}}, {"state": {"callbacks": []}}, {"weights": np.zeros(3, np.float32)},
        {"weights": np.zeros(21)}, {"versions": {}},
        *({"state.generator": value} for value in (
            None, {}, {"kind": "Generator", "state": {"bit_generator": "seed"}}, {"kind": "other", "state": 3},
        )),
        *({"state.optimizer": value} for value in ({"name": "Network"}, {"name": "Adam", "colour": 3}, 7)),
        *({f"state.{name}": "text"} for name in ("moments", "history", "best_weights", "epoch", "batch", "steps")),
    ],
    ids=str,
)  # fmt: skip
def test_a_whole_file_with_nonsense(small, change):
    """Its checksum is right: somebody made it. It is refused, or harmless; nothing in it is executed."""
    found = load_checkpoint(small)
    for name, value in change.items():
        place, _, part = name.partition(".")
        found = replace(found, **{place: found.state | {part: value} if part else value})
    save_checkpoint(small, found)
    net = Network([3, 4, 1], backend="numpy", random_state=5)
    before = net.parameters.flat.copy()
    try:
        net.fit(X, Y, epochs=6, batch_size=8, checkpoint=small)
    except CheckpointError as error:
        assert str(small) in str(error)  # noqa: PT017
        assert np.array_equal(before, net.parameters.flat)
    else:
        assert change.keys() <= {"versions"}


# A disk that fails ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [28, 5], ids=["no space", "input/output error"])
@pytest.mark.parametrize("call", ["write", "fsync", "replace", "open"])
def test_a_disk_that_fails_in_the_middle_of_a_training(tmp_path, monkeypatch, call, error):
    """The error names the file; the last whole checkpoint is there, and the training goes on from it."""
    whole, path, calls = trained(tmp_path / "whole"), tmp_path / "run", []
    real = getattr(os, call)

    def failing(*arguments, **more):
        calls.append(None)
        if len(calls) > {"write": 24, "open": 4}.get(call, 3):
            raise OSError(error, os.strerror(error))
        return real(*arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, call, failing)
        with pytest.raises(OSError, match=os.strerror(error)) as raised:
            trained(path, checkpoint_every="1 batch")
    assert raised.value.filename == str(path)
    assert [file.name for file in tmp_path.iterdir() if file.name != "whole"] == ["run"]
    assert 0 < load_checkpoint(path).state["steps"] < 15
    assert np.array_equal(trained(path).parameters.flat, whole.parameters.flat)


# Many at once ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["numpy", "numba-cpu"])
def test_threads_that_fit_at_once(soak, backend):
    """Eight threads: each fit has the bits that it has alone."""

    def fit(seed):
        net = Network([3, 8, 1], backend=require(backend), random_state=seed)
        net.fit(X, Y, epochs=3, batch_size=8)
        return net.parameters.flat.tobytes()

    expected, wrong = [fit(seed) for seed in range(8)], []

    def fits(seed):
        wrong.extend(seed for _ in range(soak.fits) if fit(seed) != expected[seed])

    threads = [threading.Thread(target=fits, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
        assert not thread.is_alive()
    assert not wrong


FORKS = """
import os, sys
import numpy as np
from fusedmlp import Network
def fit(seed):
    net = Network([3, 8, 1], backend="numba-cpu", random_state=seed)
    net.fit(np.ones((3, 5000)), np.ones((1, 5000)), epochs=2, batch_size=500)
    return net.parameters.flat.tobytes()
expected = fit(1)
for _ in range(int(sys.argv[1])):
    child = os.fork()
    if not child:
        os._exit(fit(1) != expected)
    assert os.waitpid(child, 0)[1] == 0
    assert fit(1) == expected
print("done")
"""


def test_forks_after_a_fit(soak):
    require("numba-cpu")
    command = [sys.executable, "-W", "ignore", "-c", FORKS, str(soak.forks)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.stdout == "done\n", done.stderr


# Processes that train together ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("how", "status"), [("kill", 9), ("raise", 1)])
def test_a_rank_that_fails_ends_the_job(soak, how, status):
    """tests/distributed tries each way once."""
    longest = 0.0
    for _ in range(soak.deaths):
        result, seconds = run_job(2, PROGRAMS / "failing.py", how, "numba-cpu", timeout=60)
        assert result.returncode == status, result.stderr
        longest = max(longest, seconds)
    print(f"the longest of {soak.deaths} jobs took {longest:.1f} s, its start included")


@pytest.mark.parametrize("how", ["kill", "raise", "kill at any time"])
def test_a_rank_that_fails_leaves_the_last_checkpoint(soak, how, tmp_path):
    """tests/distributed tries the first once."""
    path, epochs = tmp_path / "run", []
    for _ in range(soak.deaths):
        path.unlink(missing_ok=True)
        result, seconds = run_job(2, PROGRAMS / "checkpointed.py", path, how, timeout=60)
        assert result.returncode == (1 if how == "raise" else 9), result.stderr
        assert seconds < 10 + 20
        epochs.append(load_checkpoint(path).state["epoch"])
        assert len(list(tmp_path.iterdir())) <= 2  # the file, and one that was being written
    print(f"{how}: the checkpoints are of epochs {sorted(set(epochs))}")


# Files of other people ------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_damaged_tables(soak, tmp_path):
    """Tables with bytes changed, cut out and repeated are read, or refused by a ValueError; nothing else."""
    choose = random.Random(8)
    tables = sorted(path for path in AWKWARD.iterdir() if path.suffix in (".csv", ".tsv"))
    for number in range(soak.tables):
        path = choose.choice(tables)
        content = bytearray(path.read_bytes())
        for _ in range(choose.randint(1, 4)):
            place, other = (choose.randrange(len(content) + 1) for _ in range(2))
            match choose.randrange(4):
                case 0 if content and place < len(content):
                    content[place] = choose.randrange(256)
                case 1:
                    del content[min(place, other) : max(place, other)]
                case 2:
                    content[place:place] = content[min(place, other) : max(place, other)]
                case _:
                    content[place:place] = choose.choice([b",", b'"', b"\n", b"\r", b"\0", b"\xff", b"1e999", b";"])
        damaged = tmp_path / f"table{path.suffix}"
        damaged.write_bytes(content)
        try:
            read_table(damaged)
        except (ValueError, OSError):
            pass
        except Exception as error:
            kept = Path(os.environ.get("SOAK_KEPT", tmp_path)) / f"table-{number}{path.suffix}"
            kept.write_bytes(content)
            raise AssertionError(f"{kept}: {error!r}") from error


def test_states_are_plain_data(small):
    """What a checkpoint holds can be written again, and comes back as it was."""
    found = load_checkpoint(small)
    found.state.pop("callbacks")
    again = TrainingState.from_dict(found.state).to_dict()
    save_checkpoint(small, replace(found, state=again))
    assert json.dumps(load_checkpoint(small).state, default=np.ndarray.tolist) == json.dumps(
        again, default=np.ndarray.tolist
    )


def test_a_checkpoint_of_nothing_is_small(tmp_path):
    save_checkpoint(tmp_path / "run", CheckpointFile({}, {}, np.zeros(1, np.float32), {}, False, {}))
    assert (tmp_path / "run").stat().st_size < 500
