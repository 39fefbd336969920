"""Networks, searches and ensembles that the ranks share have the bits of one process. Prints what differs, as JSON."""

from __future__ import annotations

import json
import warnings
from functools import partial

import numpy as np
from mpi4py import MPI
from sklearn.base import clone
from sklearn.model_selection import KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fusedmlp import (
    MLPClassifier,
    MLPEnsembleClassifier,
    MLPEnsembleRegressor,
    MLPGridSearchCV,
    MLPRandomizedSearchCV,
    MLPRegressor,
    MLPSuccessiveHalvingSearchCV,
    Network,
    TrainingDivergedError,
    TrainingState,
    cross_validate_mlp,
    fit_many,
)
from fusedmlp.estimators import candidates

comm = MPI.COMM_WORLD
rng = np.random.default_rng(0)
X = rng.standard_normal((4, 90))
Y = (X[:1] + X[1:2] * X[2:3] > 0).astype(float)
COUNT = 5


def everywhere(value):
    """Whether all ranks have the same."""
    return len(set(comm.allgather(repr(value)))) == 1


def networks_outcome(networks, states=()):
    """Weights, curves and what a further training would begin with."""
    found = []
    for net in networks:
        h = net.history
        further = net._generator.bit_generator.state["state"]
        curves = h.loss, h.validation_loss, h.learning_rate, h.stopped, h.error, h.best_epoch, h.samples
        found.append((net.parameters.flat.tobytes(), curves, further))
    for state in states:
        moments = {name: moment.tobytes() for name, moment in state.moments.items()}
        found.append((state.epoch, state.steps, moments, state.generator.bit_generator.state["state"]))
    return found


def networks(together, backend, sizes=(3, 8, 5, 2, 7)):
    """Networks of several sizes; by all ranks, other ones on each rank, of which those of rank 0 count."""
    seeds = range(COUNT)
    other = 100 * comm.rank * together
    return [
        Network([4, size, 1], backend=backend, random_state=seed + other)
        for seed, size in zip(seeds, sizes, strict=True)
    ]


def trained(case, comm):
    """What comes of networks that are trained by all ranks, or by this one."""
    together = comm is not None
    case = {"backend": "numba-cpu", "epochs": [3, 4, 5, 6, 7], "batch_size": 16} | case
    nets = networks(together, case.pop("backend"))
    states = [TrainingState(planned_epochs=20) for _ in nets] if case.pop("with_states", False) else None
    raised = None
    for _ in range(1 if states is None else 2):
        try:
            histories = fit_many(nets, X, Y, state=states, comm=comm, **case)
            assert all(history is net.history for history, net in zip(histories, nets, strict=True))
        except TrainingDivergedError as error:
            raised = str(error)
            break
    if case.get("on_error") == "raise":  # the others are where they were
        return raised
    return networks_outcome(nets, states or ())


class Shift:
    """A callback that changes a weight."""

    calls = 0

    def __call__(self, training):
        Shift.calls += 1
        training.parameters.flat[0] += 0.25


folds = np.array_split(np.random.default_rng(1).permutation(90), COUNT)
rest = [np.setdiff1d(np.arange(90), fold) for fold in folds]
RATES = [0.1, 0.01, 0.001, 0.01, 0.02]
CASES = {
    "sizes": {"learning_rate": RATES},
    "numpy": {"backend": "numpy", "optimizer": ["sgd", "adam", "adamw", "momentum", "sgd"]},
    "folds": {"samples": rest, "validation_samples": folds, "early_stopping": True, "patience": 1},
    "states": {"with_states": True, "validation_fraction": 0.2, "schedule": "cosine"},
    "callbacks": {"callbacks": [(), [Shift()], (), [Shift()], ()]},
    "weights": {"sample_weight": [None, rng.random(90), None, rng.random(90), None], "dropout": [0.1, 0, 0, 0.2, 0]},
    "divergence": {"optimizer": "sgd", "learning_rate": [0.1, 1e30, 0.1, 0.1, 1e30], "epochs": 9},
    "divergence of all": {"optimizer": "sgd", "learning_rate": [0.1, 0.1, 1e30, 0.1, 0.1], "on_error": "raise"},
}


def estimators():
    """Name -> a fit, by a communicator or by this process, whose result is plain."""
    labels, table = Y[0].astype(int), X.T
    model = MLPClassifier((6,), max_iter=6, tol=0, random_state=0, batch_size=30)
    grid = {"alpha": [1e-4, 1e-1], "hidden_layer_sizes": [(3,), (9,)]}
    times = ("fit_time", "score_time")

    def search(kind, estimator, parameters, **more):
        def fit(comm):
            found = kind(estimator, parameters, **more).fit(table, labels, comm=comm)
            results = {name: list(map(repr, values)) for name, values in found.cv_results_.items()}
            if comm is not None and not everywhere(results):
                raise AssertionError("the times differ between the ranks")
            plain = {name: values for name, values in results.items() if not any(time in name for time in times)}
            return plain, found.best_params_, found.best_estimator_.predict_proba(table).tobytes(), found.best_index_

        return fit

    pipeline = make_pipeline(StandardScaler(), model)
    yield "grid", search(MLPGridSearchCV, model, grid, cv=3)
    yield "pipeline", search(MLPGridSearchCV, pipeline, {"mlpclassifier__alpha": [1e-4, 1.0, 2.0]}, cv=3)
    yield "randomized", search(MLPRandomizedSearchCV, model, grid, cv=2, n_iter=3, random_state=1)
    steep = clone(model).set_params(solver="sgd")
    yield "failing", search(MLPGridSearchCV, steep, {"learning_rate_init": [0.01, 1e300], "max_iter": [2, 3]}, cv=2)
    halving = {"cv": 2, "resource": "max_iter", "max_resources": 6, "min_resources": 2, "factor": 2, "random_state": 0}
    yield "halving", search(MLPSuccessiveHalvingSearchCV, model, grid, **halving)

    def cross_validated(comm):
        results = cross_validate_mlp(model, table, labels, cv=3, return_estimator=True, comm=comm)
        weights = [each.coefs_[0].tobytes() for each in results["estimator"]]
        return results["test_score"].tolist(), weights

    yield "cross-validation", cross_validated

    def ensemble(kind, y, **more):
        def fit(comm):
            found = kind(3, hidden_layer_sizes=(5,), max_iter=5, random_state=2, **more).fit(table, y, comm=comm)
            return [member.coefs_[0].tobytes() for member in found.estimators_], found.predict(table).tolist()

        return fit

    yield "ensemble", ensemble(MLPEnsembleClassifier, labels, bootstrap=True)
    yield "regressors", ensemble(MLPEnsembleRegressor, X[0], early_stopping=True)


def without_seeds():
    """What is drawn without a seed is the same on all ranks."""
    model = MLPRegressor(hidden_layer_sizes=(4,), max_iter=3)
    search = MLPGridSearchCV(model, {"alpha": [0.1, 1.0]}, cv=KFold(3, shuffle=True)).fit(X.T, X[0], comm=comm)
    ensemble = MLPEnsembleRegressor(3, hidden_layer_sizes=(4,), max_iter=3).fit(X.T, X[0], comm=comm)
    return everywhere(search.predict(X.T).tolist()) and everywhere(ensemble.predict(X.T).tolist())


def mistakes():
    """Name -> the messages of all ranks."""
    last = comm.rank == comm.size - 1
    table, labels = X.T, Y[0].astype(int)
    nets = networks(True, "numpy")
    model = MLPClassifier((3,), max_iter=2, alpha=0.1 * last)
    calls = {
        "epochs": lambda: fit_many(nets, X, Y, epochs=1 + last, comm=comm),
        "X": lambda: fit_many(nets, X + last, Y, epochs=1, comm=comm),
        "samples": lambda: fit_many(nets, X, Y, epochs=1, samples=[fold + last for fold in folds], comm=comm),
        "networks": lambda: fit_many(nets[last:], X, Y, epochs=1, comm=comm),
        "state": lambda: fit_many(nets[:1], X, Y, epochs=1, state=TrainingState() if last else None, comm=comm),
        "batch_size": lambda: fit_many(nets, X, Y, epochs=1, batch_size=0, comm=comm),
        "alpha": lambda: MLPGridSearchCV(model, {"max_iter": [1]}).fit(table, labels, comm=comm),
        "rows": lambda: MLPEnsembleClassifier(2).fit(table + last, labels, comm=comm),
        "interval": lambda: MLPClassifier((3,)).fit(
            table, labels, comm=comm, checkpoint="no folder/run", checkpoint_every="2 batches"
        ),
        "folder": lambda: MLPClassifier((3,)).fit(table, labels, comm=comm, checkpoint="no folder/run"),
        "pickled": lambda: MLPGridSearchCV(
            MLPClassifier((2,), schedule=lambda epoch, rate: rate, max_iter=1), {"alpha": [1, 2]}, cv=2
        ).fit(table, labels, comm=comm),
    }
    found = {}
    for name, call in calls.items():
        try:
            call()
            message = None
        except (ValueError, OSError) as error:
            message = str(error)
        found[name] = comm.allgather(message)
    return found


def counts():
    """What all ranks do of one call, together."""
    Shift.calls, fits = 0, []
    trained(CASES["callbacks"], comm)
    side_by_side = candidates.fit_side_by_side

    def counting(given):
        fits.extend(given)
        side_by_side(given)

    candidates.fit_side_by_side = counting
    dict(estimators())["grid"](comm)
    candidates.fit_side_by_side = side_by_side
    total = comm.allreduce(Shift.calls), comm.allreduce(len(fits))
    return dict(zip(("epochs of networks with callbacks", "fits of a search"), total, strict=True))


def main():
    warnings.simplefilter("ignore")
    found = {}
    fits = {name: partial(trained, case) for name, case in CASES.items()} | dict(estimators())
    references = {name: fit(None) for number, (name, fit) in enumerate(fits.items()) if number % comm.size == comm.rank}
    for number, (name, fit) in enumerate(fits.items()):
        ours, theirs = fit(comm), comm.bcast(references.get(name), number % comm.size)
        if ours != theirs:
            found[name] = [repr(ours)[-500:], repr(theirs)[-500:]]
    if not without_seeds():
        found["without seeds"] = "differs between the ranks"
    wrong = comm.gather(found)
    done, messages = counts(), mistakes()
    if comm.rank == 0:
        print(json.dumps([wrong, done, messages]))


if __name__ == "__main__":
    main()
