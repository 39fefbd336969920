"""Trainings of two ranks go on from their checkpoints with two, three and one. Prints what differs, as JSON.

The folder of the checkpoints is the first argument; further ones choose among the cases.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
import warnings
from pathlib import Path

import numpy as np
from mpi4py import MPI
from scipy import sparse

from fusedmlp import MLPClassifier, MLPRegressor, Network, ReduceOnPlateau
from fusedmlp.checkpoints import FileRecorder

world = MPI.COMM_WORLD
two = world.Split(0 if world.rank < 2 else MPI.UNDEFINED)
FOLDER = Path(sys.argv[1])
M = 61
SHARDS = {1: [M], 2: [50, 11], 3: [20, 0, 41]}
rng = np.random.default_rng(0)
X = rng.standard_normal((5, M))
Y = (X[:1] * X[1:2] + X[2:3] > 0).astype(float)
WEIGHT = rng.random(M) + 0.5
WIDE = ("sgd", "numpy", "held back", "validation", "classifier")
OTHERS = rng.standard_normal((5, 23)), (rng.random((1, 23)) > 0.5).astype(float)

snapshots = []
write_file = FileRecorder.write


def write(self, *arguments):
    """Keep a copy of every checkpoint."""
    write_file(self, *arguments)
    snapshots.append(shutil.copy(self.path, FOLDER / f"kept-{len(snapshots)}"))


FileRecorder.write = write


def wait():
    """For all ranks, without keeping a core busy."""
    request = world.Ibarrier()
    while not request.Test():
        time.sleep(0.002)


def here(x, comm, shards):
    """The part of samples along the last axis that this rank passes."""
    if x is None or not shards:
        return x
    sizes = SHARDS[comm.size]
    end = sum(sizes[: comm.rank + 1])
    return x[..., end - sizes[comm.rank] : end]


def network_outcome(case, comm, **checkpoint):
    """What a training leaves: curves, weights, and how it ended."""
    case = {"backend": "numba-cpu", "shards": False, **case}
    shards = case.pop("shards") and comm is not None
    backend, as_sparse = case.pop("backend"), case.pop("sparse", False)
    table, targets, weight = (here(x, comm, shards) for x in (X, Y, case.pop("weights", None)))
    if as_sparse:
        table = sparse.csc_array(np.where(table > 0.5, table, 0))
    if "callback" in case:
        case["callbacks"] = [case.pop("callback")()]
    net = Network([5, 7, 1], "tanh", dtype="float64", backend=backend, random_state=1 + 10 * world.rank)
    together = {} if comm is None else {"comm": comm, "shards": shards}
    arguments = {"epochs": 3, "batch_size": 8, "learning_rate": 0.02, "sample_weight": weight} | case
    history = net.fit(table, targets, **arguments, **together, **checkpoint)
    curves = [history.loss, history.validation_loss, history.learning_rate]
    return curves, net.parameters.flat.copy(), [history.stopped, history.best_epoch, history.samples]


def estimator_outcome(case, comm, **checkpoint):
    """The same of an estimator's fit."""
    case = dict(case)
    kind = case.pop("kind")
    held_out = case.pop("held_out", {})
    common = {"hidden_layer_sizes": (6,), "max_iter": 4, "batch_size": 8, "random_state": 3, "tol": 0}
    estimator = kind(**common | case)
    y = Y[0].astype(int) if kind is MLPClassifier else X[0]
    together = {} if comm is None else {"comm": comm}
    estimator.fit(X.T, y, **held_out, **together, **checkpoint)
    flat = np.concatenate([x.ravel() for x in [*estimator.coefs_, *estimator.intercepts_]])
    return [estimator.loss_curve_, estimator.validation_scores_ or []], flat, [estimator.n_iter_]


def bits(outcome):
    return repr(outcome[0]), outcome[1].tobytes(), outcome[2]


def close(ours, theirs):
    curves = all(np.allclose(a, b, 1e-9, 1e-9) for a, b in zip(ours[0], theirs[0], strict=True))
    return curves and np.allclose(ours[1], theirs[1], 1e-9, 1e-9) and ours[2] == theirs[2]


def differences(outcome, case, every, wide):
    """What a case does otherwise than it should; `wide`: also with three ranks."""
    found, path = [], FOLDER / "run"
    snapshots.clear()
    path.unlink(missing_ok=True)
    whole = written = None
    if two != MPI.COMM_NULL:
        whole = outcome(case, two)
        written = outcome(case, two, checkpoint=path, checkpoint_every=every)
        if bits(whole) != bits(written):
            found.append(f"written: {whole} and {written}")
    wait()
    kept = world.bcast(snapshots)
    if len(kept) < 3:
        found.append(f"{len(kept)} checkpoints")
    some = np.unique(np.linspace(0, len(kept) - 2, 3).astype(int))
    for place, comm in zip(some, (two, None, world) if wide else (None, two), strict=False):
        snapshot = kept[place]
        if comm != MPI.COMM_NULL and (comm is not None or world.rank == 0):
            copy = shutil.copy(snapshot, FOLDER / f"going-on-{world.rank}")
            again = outcome(case, comm, checkpoint=copy, checkpoint_every=every)
            expected = whole or again  # of rank 2
            same = bits(again) == bits(expected) if comm is two else close(again, expected)
            if not same:
                found.append(f"{snapshot} by {comm and comm.size}: {again} for {expected}")
        wait()
    return found


def cases():
    """Name -> (what trains, its arguments, how often it is written down)."""
    for optimizer, every in {"sgd": 1, "momentum": "5 batches", "adam": "3 batches"}.items():
        yield optimizer, network_outcome, {"optimizer": optimizer, "shards": True}, every
    yield "numpy", network_outcome, {"backend": "numpy", "optimizer": "adamw", "shards": True}, "3 batches"
    held_back = {"validation_fraction": 0.3, "early_stopping": True, "patience": 1, "epochs": 8, "tolerance": 0.01}
    yield "held back", network_outcome, {**held_back, "weights": WEIGHT, "shards": True}, "4 batches"
    yield "validation", network_outcome, {"validation_data": OTHERS, "dropout": 0.3, "clip_norm": 0.1}, "4 batches"
    yield "seconds", network_outcome, {"backend": "numpy", "shards": True, "epochs": 2}, "0.000001s"
    yield "sparse", network_outcome, {"sparse": True, "callback": lambda: ReduceOnPlateau(patience=1)}, 1
    yield "classifier", estimator_outcome, {"kind": MLPClassifier, "early_stopping": True}, 1
    held_out = {"X_val": OTHERS[0].T, "y_val": OTHERS[0][0]}
    yield "regressor", estimator_outcome, {"kind": MLPRegressor, "solver": "sgd", "held_out": held_out}, 1


def main():
    warnings.simplefilter("ignore")
    chosen, found = sys.argv[2:], {}
    for name, outcome, case, every in cases():
        if not chosen or name in chosen:
            differing = world.gather(differences(outcome, case, every, name in WIDE))
            if any(differing or []):
                found[name] = differing
    if world.rank == 0:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
