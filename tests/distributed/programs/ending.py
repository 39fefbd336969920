"""One rank has to end in the middle of an epoch: all end with the same batch. Prints how, as JSON."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import warnings

import numpy as np
from mpi4py import MPI

from fusedmlp import Callback, Network, StopAfter

comm = MPI.COMM_WORLD
warnings.simplefilter("ignore", UserWarning)
X = np.random.default_rng(comm.rank).standard_normal((20, 30_000 * (comm.rank + 1)))
Y = (X[:1] > 0).astype(float)


class StopInEpoch(Callback):
    """Stops the training after the third epoch, changes a rate and weights."""

    def on_epoch_end(self, training):
        training.rate_factor = 1.0 + comm.rank
        training.parameters.flat[0] = comm.rank
        if training.epoch == 2:
            training.stop(f"rank {comm.rank} has had enough")


def end(how, backend, epochs=10_000):
    """(whether all ranks have the same weights, steps and history, how the training ended)."""
    net = Network([20, 30, 1], backend=backend, random_state=0)
    mine, callbacks, raised = comm.rank == comm.size - 1, [], None
    if how == "deadline" and mine:
        callbacks = [StopAfter(0.7)]
    if how == "callback" and mine:
        callbacks = [StopInEpoch()]
    if how == "interrupt" and mine:
        threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        net.fit(X, Y, epochs=epochs, batch_size=50, comm=comm, shards=True, callbacks=callbacks)
    except KeyboardInterrupt:
        raised = "KeyboardInterrupt"
    flat = comm.allgather(net.parameters.flat.tobytes())
    facts = comm.allgather((net.history.stopped, raised, net.history.loss))
    return len(set(flat)) == 1, facts.count(facts[0]) == comm.size, facts[0][:2]


end("compile", sys.argv[1], epochs=1)
found = {how: end(how, sys.argv[1]) for how in sys.argv[2:] or ("deadline", "interrupt", "callback")}
if comm.rank == 0:
    print(json.dumps(found))
