"""Estimators that all ranks train have the numbers of one. Prints what differs, as JSON."""

from __future__ import annotations

import json
import warnings

import numpy as np
from mpi4py import MPI
from scipy import sparse

from fusedmlp import MLPClassifier, MLPRegressor

comm = MPI.COMM_WORLD
warnings.simplefilter("ignore")
rng = np.random.default_rng(0)
X = rng.standard_normal((113, 6))
labels = np.array(["a", "b", "c"])[np.argmax(X[:, :3], axis=1)]
w = rng.random(113)
CASES = {
    "adam": (MLPClassifier(), {}),
    "weights": (MLPClassifier(alpha=0.1), {"sample_weight": w}),
    "sgd": (MLPRegressor(solver="sgd", learning_rate="adaptive", learning_rate_init=0.01), {}),
    "early stopping": (MLPClassifier(early_stopping=True, n_iter_no_change=2, learning_rate_init=0.02), {}),
    "without shuffling": (MLPRegressor(shuffle=False, early_stopping=True), {}),
    "held out": (MLPClassifier(restore_best=True), {"X_val": X[:20], "y_val": labels[:20]}),
    "sparse": (MLPClassifier(), {"sparse": True}),
    "dropout": (MLPClassifier(dropout=0.3), {}),
}


def fitted(name, together, random_state=4):
    """(loss curve, weights, best score) of a fit by all ranks, or alone."""
    estimator, arguments = CASES[name]
    settings = {"hidden_layer_sizes": (7,), "batch_size": 25, "max_iter": 8, "random_state": random_state}
    estimator = type(estimator)(**estimator.get_params() | settings)
    arguments = dict(arguments) | ({"comm": comm} if together else {})
    table = sparse.csr_matrix(np.where(X > 0, X, 0)) if arguments.pop("sparse", False) else X
    estimator.fit(table, X[:, 0] if isinstance(estimator, MLPRegressor) else labels, **arguments)
    return estimator.loss_curve_, estimator.coefs_, estimator.best_validation_score_


found = {}
for name in CASES:
    ours, theirs = fitted(name, together=True), comm.bcast(fitted(name, together=False) if comm.rank == 0 else None)
    flat = np.concatenate([W.ravel() for W in ours[1]])
    same = all(np.array_equal(flat, other) for other in comm.allgather(flat))
    close = np.allclose(ours[0], theirs[0], 1e-9, 1e-9) and np.allclose(ours[1][0], theirs[1][0], 1e-7, 1e-7)
    if not (same and close and repr(ours[2]) == repr(theirs[2])):
        found[name] = [same, close, repr(ours[0]), repr(theirs[0])]
curves = comm.allgather(repr(fitted("adam", together=True, random_state=None)[0]))
if len(set(curves)) > 1:
    found["without a seed"] = curves
for name, arguments in {"alpha": {"alpha": 0.1 * comm.rank}, "solver": {"solver": "lbfgs"}}.items():
    try:
        MLPClassifier(**arguments).fit(X, labels, comm=comm)
    except ValueError as error:
        if name not in str(error):
            found[name] = str(error)
    else:
        found[name] = "no error"
try:
    MLPClassifier().fit(X, labels[:: 1 - 2 * comm.rank], comm=comm)
    found["y"] = "no error"
except ValueError as error:
    if "expected the same X, y" not in str(error):
        found["y"] = str(error)
if comm.rank == 0:
    print(json.dumps(found))
