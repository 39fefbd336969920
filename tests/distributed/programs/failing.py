"""Rank 1 fails in the way that is named, while rank 0 waits for it. Nothing is imported that would help."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import suppress

import numpy as np
from mpi4py import MPI

from fusedmlp import Network

how, backend = sys.argv[1:]
comm = MPI.COMM_WORLD
X = np.random.default_rng(0).standard_normal((4, 40))
Y = (X[:1] > 0).astype(float)
net = Network([4, 3, 1], backend=backend)


def fail(training=None):
    """What rank 1 does after some epochs, or after a training."""
    if how == "nothing" or comm.rank == 0 or (training is not None and training.epoch < 2):
        return
    if how.startswith("raise"):
        raise RuntimeError("rank 1 fails")
    if how.startswith("interrupt"):
        os.kill(os.getpid(), signal.SIGINT)
    if how.startswith("exit"):
        sys.exit(3)
    if how.startswith("leave"):
        raise SystemExit(3)
    if how.startswith("quit"):
        quit(3)
    if how.startswith("thread"):
        thread = threading.Thread(target=[].pop)
        thread.start()
        thread.join()
    os.kill(os.getpid(), signal.SIGKILL)


def fit(**arguments):
    net.fit(X, Y, epochs=5, batch_size=8, comm=comm, **arguments)


fit()
try:
    if how.endswith("between"):
        fail()
    fit(callbacks=[fail])
except RuntimeError:
    if how != "raise and catch":
        raise
with suppress(SystemExit):  # it is no end
    sys.exit(4)
