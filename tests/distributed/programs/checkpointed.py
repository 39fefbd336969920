"""A long training that writes checkpoints to the file that is named first, until something ends it."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading

import numpy as np
from mpi4py import MPI

from fusedmlp import Network

path, how = sys.argv[1:]
comm = MPI.COMM_WORLD
X = np.random.default_rng(0).standard_normal((4, 64))
Y = (X[:1] > 0).astype(float)


def after_an_epoch(training):
    """Say that a signal may come, or be one."""
    if training.epoch == 4 and comm.rank == 0:
        print("ready", flush=True)
    if training.epoch == 4 and comm.rank == 1 and how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if training.epoch == 4 and comm.rank == 1 and how == "raise":
        raise RuntimeError("rank 1 fails")
    if how == "kill at any time" and training.epoch == 4 and comm.rank == 1:
        threading.Timer(random.random() / 5, os.kill, (os.getpid(), signal.SIGKILL)).start()


net = Network([4, 3, 1], backend="numpy", random_state=0)
every = "1h" if how == "wait" else "3 batches"
net.fit(
    *(X, Y), epochs=10**6, batch_size=8, comm=comm, checkpoint=path, checkpoint_every=every, callbacks=[after_an_epoch]
)
