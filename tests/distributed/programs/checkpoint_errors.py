"""What goes wrong with checkpoints of two ranks, and signals to one of them. Prints what came of it, as JSON."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import warnings
from pathlib import Path

import numpy as np
from mpi4py import MPI

from fusedmlp import Checkpoint, Network, TerminatedError, TrainingState
from fusedmlp.distributed.phase import SumOverProcesses
from fusedmlp.files.checkpoint_files import load_checkpoint

comm = MPI.COMM_WORLD
last = comm.rank == comm.size - 1
FOLDER = Path(sys.argv[1])
PATH, HERE = FOLDER / "run", FOLDER / "run" if comm.rank == 0 else FOLDER / "not on this machine" / "run"
rng = np.random.default_rng(0)
X = rng.standard_normal((4, 40))
Y = (X[:1] > 0).astype(float)


def fit(path, seed=0, X=X, **arguments):
    """A training of five epochs of five batches."""
    net = Network([4, 3, 1], dtype="float64", backend="numpy", random_state=seed)
    net.fit(X, Y, **{"epochs": 5, "batch_size": 8, "checkpoint": path, "comm": comm} | arguments)
    return net.parameters.flat.tobytes(), net.history.loss


def message(call, *arguments, **more):
    """The class and the message of the error that a call raises."""
    try:
        call(*arguments, **more)
    except (ValueError, OSError) as error:
        return type(error).__name__, str(error)
    return None


def content():
    return comm.bcast(PATH.read_bytes() if comm.rank == 0 and PATH.exists() else b"")


def full_disk():
    """A training whose third checkpoint finds the disk full."""
    flush, count = os.fsync, []

    def failing(file):
        count.append(file)
        if len(count) >= 5:  # a file, and its folder
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(file)

    os.fsync = failing if comm.rank == 0 else flush
    try:
        return message(fit, HERE)
    finally:
        os.fsync = flush


def interrupted(number, at):
    """A signal to the last rank in the middle of an epoch, or at its end; then the training goes on."""
    poll, calls = SumOverProcesses.poll, []

    def polled(self, check):
        calls.append(check)
        if last and len(calls) == at:
            os.kill(os.getpid(), number)
        poll(self, check)

    SumOverProcesses.poll = polled
    try:
        fit(HERE, checkpoint_every="1h")
        raised = None
    except (KeyboardInterrupt, TerminatedError) as error:
        raised = type(error).__name__
    SumOverProcesses.poll = poll
    state = comm.bcast(load_checkpoint(PATH).state if comm.rank == 0 else None)
    return raised, state["epoch"], state["batch"], fit(HERE, seed=9, checkpoint_every="1h") == whole


def tried(name, call, *arguments, **more):
    """The messages of all ranks, and whether the file is as it was."""
    before = content()
    messages = comm.allgather(message(call, *arguments, **more))
    found[name] = [messages, content() == before]


warnings.simplefilter("ignore")
found = {}
whole = fit(None)
tried("no folder", fit, FOLDER / "none" / "run")
tried("a folder", fit, FOLDER)
tried("nothing on one rank", fit, None if last else PATH)
tried("other intervals", fit, PATH, checkpoint_every=1 + last)
tried("no path", fit, 3)
tried("no interval", fit, PATH, checkpoint_every="often")
tried("a state", fit, PATH, state=TrainingState())
found["full disk"] = [comm.allgather(full_disk()), load_checkpoint(PATH).state["epoch"] if comm.rank == 0 else 2]
found["went on"] = fit(HERE, seed=comm.rank + 5) == whole
found["over"] = fit(HERE, seed=comm.rank + 7) == whole
tried("another training", fit, HERE, alpha=0.1)
tried("other samples", fit, HERE, X=X + 1)
if comm.rank == 0:
    damaged = bytearray(PATH.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    PATH.write_bytes(damaged)
comm.Barrier()
tried("damaged", fit, HERE)
for name, number, at in (("end of an epoch", signal.SIGINT, 12), ("middle", signal.SIGTERM, 16)):
    comm.Barrier()
    if comm.rank == 0:
        PATH.unlink()
    comm.Barrier()
    found[name] = comm.allgather(interrupted(number, at))
if comm.rank == 0:
    PATH.unlink()
comm.Barrier()
extra = Checkpoint(HERE, "2 epochs", {"note": f"of rank {comm.rank}"})
fit(extra)
found["extra"] = comm.bcast(load_checkpoint(PATH).extra if comm.rank == 0 else None)
if comm.rank == 0:
    print(json.dumps(found))
