"""N ranks give the numbers of one: many trainings by 1, 2 and 3 ranks, and by rank 0 alone.

Prints what differs, as JSON. Each rank of a number has other samples; all numbers of ranks have the same ones together.
"""

from __future__ import annotations

import json
import sys
import time
import warnings

import numpy as np
from mpi4py import MPI
from scipy import sparse

from fusedmlp import SGD, Network, ReduceOnPlateau, TrainingDivergedError, TrainingState

world = MPI.COMM_WORLD
SIZES = {1: [37], 2: [30, 7], 3: [7, 0, 30]}
M = 37
TOLERANCE = {"float64": 1e-10, "float32": 2e-5}


def targets(loss, outputs, rng, X):
    """Targets that the loss takes, which have something to do with X."""
    if loss == "categorical_cross_entropy":
        return np.eye(outputs)[rng.integers(outputs, size=M)].T
    Z = np.tanh(X[:outputs])
    if loss in ("binary_cross_entropy", "sum_squared_error"):
        return (Z > 0).astype(float)
    return np.round(np.exp(Z)) if loss == "poisson" else Z


def arrays(loss="binary_cross_entropy", outputs=1, weights=False, seed=0, **_):
    """X, Y and weights of all ranks."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((5, M))
    w = rng.integers(0, 4, M) + rng.random(M) if weights else None
    return X, targets(loss, outputs, rng, X), w


def here(x, comm, shards):
    """The part of samples along the last axis that this rank passes."""
    if x is None or not shards:
        return x
    ends = np.cumsum([0, *SIZES[comm.size]])
    return x[..., ends[comm.rank] : ends[comm.rank + 1]]


def outcome(network, history):
    """What has to be the same."""
    curves = [history.loss, history.validation_loss, history.learning_rate]
    return curves, network.parameters.flat.copy(), history.stopped, history.best_epoch, history.samples


def train(case, comm=None):
    """A training by all ranks of `comm`, or alone."""
    case = {"loss": "binary_cross_entropy", "outputs": 1, "weights": False, "shards": True, **case}
    loss, outputs, shards = case.pop("loss"), case.pop("outputs"), case.pop("shards") and comm is not None
    X, Y, w = arrays(loss, outputs, case.pop("weights"))
    as_sparse, validates, calls = case.pop("sparse", False), case.pop("validates", False), case.pop("calls", 1)
    backend, dtype, bias = case.pop("backend"), case.pop("dtype"), case.pop("bias", True)
    seed = 1 if comm is None else 1 + comm.rank  # the weights of rank 0 count
    net = Network([5, 9, 6, outputs], "tanh", loss, bias, dtype=dtype, backend=backend, random_state=seed)
    arguments = {"epochs": 4, "batch_size": 10, "random_state": 3, "learning_rate": 0.01} | case
    if "callback" in arguments:
        arguments["callbacks"] = [arguments.pop("callback")()]
    if validates:
        other = arrays(loss, outputs, seed=5)
        arguments["validation_data"] = tuple(here(x, comm, shards) for x in other[:2])
    if comm is not None:
        arguments |= {"comm": comm, "shards": shards}
    X, Y, w = here(X, comm, shards), here(Y, comm, shards), here(w, comm, shards)
    X = sparse.csc_array(np.where(X > 0.5, X, 0)) if as_sparse else X
    state = TrainingState(planned_epochs=8) if calls > 1 else None
    for call in range(calls):
        if call:
            arguments["random_state"] = None
        try:
            history = net.fit(X, Y, sample_weight=w, state=state, **arguments)
        except TrainingDivergedError:
            history = net.history
    return outcome(net, history)


def differences(case, comm, one):
    """What all ranks of `comm` have otherwise than rank 0 alone, or than each other."""
    found = []
    curves, flat, *facts = train(case, comm)
    if not all(np.array_equal(flat, other) for other in comm.allgather(flat)):
        found.append("weights between ranks")
    if len(set(comm.allgather(repr((curves, facts))))) > 1:
        found.append("histories between ranks")
    tolerance = TOLERANCE[case["dtype"]]
    for name, ours, theirs in zip(("loss", "validation_loss", "rate"), curves, one[0], strict=True):
        if len(ours) != len(theirs) or not np.allclose(ours, theirs, tolerance, tolerance, equal_nan=True):
            found.append(f"{name}: {ours} for {theirs}")
    if not np.allclose(flat, one[1], 10 * tolerance, 10 * tolerance):
        found.append(f"weights: {np.abs(flat - one[1]).max()}")
    if facts != list(one[2:]):
        found.append(f"{facts} for {list(one[2:])}")
    return found


def cases():
    """Name -> the arguments of a training."""
    both = [("numpy", "float64"), ("numba-cpu", "float64"), ("numba-cpu", "float32"), ("numpy", "float32")]
    for backend, dtype in both:
        for optimizer in ("sgd", "momentum", "nesterov", "adam", "adamw"):
            yield {"backend": backend, "dtype": dtype, "optimizer": optimizer}
    for backend in ("numpy", "numba-cpu"):
        base = {"backend": backend, "dtype": "float64"}
        for loss in ("categorical_cross_entropy", "squared_error", "sum_squared_error", "poisson"):
            yield base | {"loss": loss, "outputs": 3}
        yield base | {"shards": False, "weights": True}
        yield base | {"weights": True, "alpha": 0.1, "clip_norm": 0.05}
        yield base | {"weights": True, "validation_fraction": 0.3, "early_stopping": True, "patience": 2, "epochs": 9}
        yield base | {"batch_size": 64, "alpha": 0.1}
        yield base | {"batch_size": 1, "epochs": 1}
        yield base | {"shuffle": False, "bias": False}
        yield base | {"shuffle": False, "validation_fraction": 0.2, "shards": False}
        yield base | {"dropout": 0.3}
        yield base | {"dropout": (0.2, 0.0, 0.4), "validation_fraction": 0.25}
        yield base | {"validates": True, "early_stopping": True, "patience": 1, "tolerance": 0.01, "epochs": 9}
        yield base | {"schedule": "cosine", "calls": 2, "validation_fraction": 0.2}
        yield base | {"callback": lambda: ReduceOnPlateau(patience=1, tolerance=0.5), "epochs": 6}
        yield base | {"sparse": True}
        yield base | {"loss": "squared_error", "optimizer": "sgd", "learning_rate": 1e6, "epochs": 40}
        yield base | {"optimizer": SlowStep()}


class SlowStep(SGD):
    """A rule that compiled code does not know."""

    rule = None

    def update(self, xp, state, flat, gradient):
        flat -= state.learning_rate * gradient


def wait_for_all():
    """A barrier whose ranks sleep: those that wait for others in MPI keep their cores busy."""
    request = world.Ibarrier()
    while not request.Test():
        time.sleep(0.002)


def main():
    warnings.simplefilter("ignore", UserWarning)
    chosen = sys.argv[1:]
    named = [(", ".join(f"{key}={value!r}" for key, value in case.items()), case) for case in cases()]
    named = [(name, case) for name, case in named if all(word in name for word in chosen)]
    alone = [train(dict(case)) for _, case in named] if world.rank == 0 else None
    wait_for_all()
    alone, found = world.bcast(alone), {}
    for ranks in range(1, world.size + 1):
        comm = world.Split(0 if world.rank < ranks else MPI.UNDEFINED)
        if comm:
            differing = [(name, differences(case, comm, one)) for (name, case), one in zip(named, alone, strict=True)]
            found[ranks] = {name: parts for name, parts in differing if parts}
        wait_for_all()
    if world.rank == 0:
        print(json.dumps(found))


main()
