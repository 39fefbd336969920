"""Under mpiexec: the seconds of a step of one training, printed as JSON by rank 0."""

from __future__ import annotations

import json
import statistics
import sys
import time

import numpy as np
from mpi4py import MPI

from fusedmlp import Network
from fusedmlp.distributed.sharded_samples import Numbering

STEPS, EPOCH_SECONDS, EPOCHS = 8, 0.15, 9


def step_seconds(sizes: list[int], batch: int) -> float:
    """The median over epochs of a step's time, that of the slowest rank; `batch` samples a step and rank."""
    comm = MPI.COMM_WORLD
    net = Network(sizes, "relu", "categorical_cross_entropy", backend="numba-cpu", random_state=0)
    rng = np.random.default_rng(comm.rank)
    arguments = {"comm": comm, "shards": True} if comm.size > 1 else {}
    arguments |= {"batch_size": batch * comm.size, "learning_rate": 1e-4}

    def seconds(steps: int, epochs: int) -> list[float]:
        X = rng.standard_normal((batch * steps, sizes[0]), np.float32).T
        Y = np.eye(sizes[-1], dtype=np.float32)[rng.integers(sizes[-1], size=batch * steps)].T
        return net.fit(X, Y, epochs=epochs, **arguments).seconds

    first = min(seconds(STEPS, 3)) / STEPS
    steps = int(comm.bcast(max(STEPS, min(4096, EPOCH_SECONDS / first, 2**28 / (4 * sizes[0] * batch)))))
    return float(comm.allreduce(statistics.median(seconds(steps, EPOCHS + 1)[1:]) / steps, MPI.MAX))


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
        result = step_seconds([int(n) for n in what.split("-")], int(numbers[0]))
    if MPI.COMM_WORLD.rank == 0:
        print(json.dumps(result))
