"""Arguments that differ between the ranks: each is a ValueError on every rank. Prints the messages, as JSON."""

from __future__ import annotations

import json

import numpy as np
from mpi4py import MPI

from fusedmlp import SGD, GradientPhase, Network, TrainingState

comm = MPI.COMM_WORLD
last = comm.rank == comm.size - 1
rng = np.random.default_rng(0)
X = rng.standard_normal((4, 20))
Y = (X[:1] > 0).astype(float)


class NoPhase(GradientPhase):
    """Does nothing."""

    def apply(self, gradient, sums):
        pass


def message(sizes=(4, 3, 1), network=None, shards=False, X=X, Y=Y, **arguments):
    """The message of the ValueError that a training raises."""
    net = Network(list(sizes), backend="numpy", **network or {})
    try:
        net.fit(X, Y, **{"epochs": 1, "comm": comm, "shards": shards} | arguments)
    except ValueError as error:
        return str(error)
    return None


CASES = {
    "layer_sizes": {"sizes": (4, 3 + last, 1)},
    "hidden_activation": {"network": {"hidden_activation": "relu" if last else "tanh"}},
    "loss": {"network": {"loss": "squared_error" if last else "binary_cross_entropy"}},
    "dtype": {"network": {"dtype": "float64" if last else "float32"}},
    "epochs": {"epochs": 5 + last},
    "batch_size": {"batch_size": 8 + last},
    "optimizer": {"optimizer": "sgd" if last else "adam"},
    "optimizer's numbers": {"optimizer": SGD(0.1, 0.9 if last else 0.0)},
    "random_state": {"random_state": int(last)},
    "schedule": {"schedule": "step" if last else "constant"},
    "dropout": {"dropout": 0.5 * last},
    "shards": {"shards": bool(last)},
    "state": {"state": TrainingState() if last else None},
    "sample_weight": {"sample_weight": np.ones(20) if last else None},
    "validation_data": {"validation_data": (X, Y) if last else None},
    "shape of X": {"X": X[:, last:], "Y": Y[:, last:]},
    "X": {"X": X + last},
    "inputs of X": {"X": X[last:], "shards": True},
    "a number that is not finite": {"X": np.where(last, np.nan, X), "shards": True},
    "a wrong argument on all": {"batch_size": 0},
    "a wrong argument on one": {"patience": -1 if last else -1.0},
    "gradient_phase": {"gradient_phase": NoPhase()},
    "no samples": {"X": X[:, :0], "Y": Y[:, :0], "shards": True},
    "weights that are all 0": {"sample_weight": np.zeros(20)},
}
found = {name: comm.allgather(message(**case)) for name, case in CASES.items()}
found["nothing wrong"] = comm.allgather(message())
if comm.rank == 0:
    print(json.dumps(found))
