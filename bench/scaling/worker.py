"""Under mpiexec: the seconds of a step of one training, printed as JSON by rank 0."""

from __future__ import annotations

import json
import statistics
import sys
import time

import numpy as np
from mpi4py import MPI

from bench.scaling.timing import ENOUGH, UNDISTURBED
from fusedmlp import Callback, Network
from fusedmlp.distributed.sharded_samples import Numbering

STEPS, EPOCH_SECONDS, EPOCHS, SECONDS = 4, 0.04, 100, 3.0
MOST_BYTES = 4 * 2**20
"""The size of X in a process: two on one machine share its cache, and those on others do not."""


class Share(Callback):
    """The share of each epoch in which this process had a core: other programs may have taken it."""

    def __init__(self):
        self.shares = []

    def on_fit_begin(self, training):
        self._before = time.perf_counter(), time.process_time()

    def on_epoch_end(self, training):
        now = time.perf_counter(), time.process_time()
        wall, own = (after - before for after, before in zip(now, self._before, strict=True))
        self._before = now
        self.shares.append(own / wall)


def step_seconds(sizes: list[int], batch: int, kind: str) -> tuple[float, int]:
    """(the median over undisturbed epochs of a step's time, how many of these there were).

    `batch` are the samples of a step in each process. `kind`: "alone" is without messages; "together", all processes
    train one network; "apart", each trains its own at the same time, and sends its sums to itself. Where too many
    epochs are disturbed, the tenth that was disturbed least counts.
    """
    comm = MPI.COMM_WORLD
    net = Network(sizes, "relu", "categorical_cross_entropy", backend="numba-cpu", random_state=0)
    rng = np.random.default_rng(comm.rank)
    members = {"alone": None, "apart": MPI.COMM_SELF, "together": comm}[kind]
    arguments = {} if members is None else {"comm": members, "shards": True}
    arguments |= {"batch_size": batch * (comm.size if kind == "together" else 1), "learning_rate": 1e-4}

    def seconds(steps: int, epochs: int) -> tuple[np.ndarray, np.ndarray]:
        X = rng.standard_normal((batch * steps, sizes[0]), np.float32).T
        Y = np.eye(sizes[-1], dtype=np.float32)[rng.integers(sizes[-1], size=batch * steps)].T
        share = Share()
        history = net.fit(X, Y, epochs=epochs, callbacks=[share], **arguments)
        # All ranks wait for the slowest.
        return np.max(comm.allgather(history.seconds), axis=0), np.min(comm.allgather(share.shares), axis=0)

    first = min(seconds(STEPS, 3)[0]) / STEPS
    steps = int(comm.bcast(max(STEPS, min(4096, EPOCH_SECONDS / first, MOST_BYTES / (4 * sizes[0] * batch)))))
    epochs = int(comm.bcast(max(2 * ENOUGH, min(EPOCHS, SECONDS / (first * steps)))))
    times, shares = seconds(steps, epochs)
    count = int((shares > UNDISTURBED).sum())
    best = np.argsort(-shares)[: max(count, ENOUGH)]
    return float(np.median(times[best])) / steps, count


def draw_seconds(samples: int) -> float:
    """The time for each sample of all ranks to draw an order and find a rank's own samples in it."""
    numbering, rng = Numbering(samples, 0, samples // 64), np.random.default_rng(0)
    rounds = []
    for _ in range(9):
        start = time.perf_counter()
        numbering.parts(rng.permutation(samples), samples // 64)
        rounds.append((time.perf_counter() - start) / samples)
    return statistics.median(rounds)


if __name__ == "__main__":
    what, *numbers = sys.argv[1:]
    if what == "draw":
        result = draw_seconds(int(numbers[0]))
    else:
        result = step_seconds([int(n) for n in what.split("-")], int(numbers[0]), numbers[1])
    if MPI.COMM_WORLD.rank == 0:
        print(json.dumps(result))
