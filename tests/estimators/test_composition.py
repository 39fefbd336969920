"""Inside of scikit-learn's own tools: pipelines, searches, calibration, bagging, routing, tables with names."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_diabetes, load_digits
from sklearn.ensemble import BaggingClassifier
from sklearn.inspection import permutation_importance
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler, scale

import fusedmlp
from fusedmlp import MLPClassifier, MLPRegressor
from fusedmlp.backends.numba_cpu.workers import threads

X, Y = load_digits(return_X_y=True)
X, Y = X[:400] / 16, Y[:400]
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def small(**parameters):
    return MLPClassifier(
        **{"hidden_layer_sizes": (20,), "max_iter": 15, "learning_rate_init": 0.02, "random_state": 0} | parameters
    )


def test_clones_and_parameters():
    model = small(dropout=[0.1, 0.2], class_weight={0: 2.0}).fit(X, Y)
    copy = clone(model)
    assert copy.get_params() == model.get_params()
    assert not hasattr(copy, "coefs_")
    assert model.set_params(alpha=3).alpha == 3
    assert eval(repr(clone(model))).get_params() == model.get_params()


def test_a_grid_search_in_processes():
    grid = {"alpha": [1e-4, 1.0], "activation": ["relu", "gelu"]}
    searches = [GridSearchCV(small(), grid, cv=3, n_jobs=n).fit(X, Y) for n in (1, 2)]
    scores = [search.cv_results_["mean_test_score"] for search in searches]
    assert np.array_equal(*scores)
    assert searches[0].best_score_ > 0.7


def test_processes_keep_to_their_share_of_the_cores(monkeypatch):
    from joblib import Parallel, delayed

    monkeypatch.delenv("FUSEDMLP_NUM_THREADS", raising=False)
    counts = Parallel(n_jobs=2)(delayed(threads.thread_count)() for _ in range(2))
    assert sum(counts) <= max(2, threads.usable_cores())


def test_pipelines_with_tables():
    pd = pytest.importorskip("pandas")
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"size": rng.normal(size=300), "color": rng.choice(["red", "green", "blue"], 300)})
    target = ((table["size"] > 0) ^ (table["color"] == "red")).astype(int)
    columns = ColumnTransformer([("numbers", StandardScaler(), ["size"]), ("texts", OneHotEncoder(), ["color"])])
    model = make_pipeline(columns, small(max_iter=200, learning_rate_init=0.01)).fit(table, target)
    assert model.score(table, target) > 0.9
    columns.set_output(transform="pandas")
    onehot = OneHotEncoder(sparse_output=False)
    columns.set_params(texts=onehot)
    model.fit(table, target)
    assert list(model[:-1].get_feature_names_out()) == model[-1].feature_names_in_.tolist()


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_names_of_features(library):
    frames = pytest.importorskip(library)
    names = [f"pixel{i}" for i in range(64)]
    table = frames.DataFrame(dict(zip(names, X.T, strict=True)))
    model = small().fit(table, Y)
    assert model.feature_names_in_.tolist() == names
    assert np.array_equal(model.predict(table), small().fit(X, Y).predict(X))
    with pytest.warns(UserWarning, match="X does not have valid feature names"):
        model.predict(X)
    with pytest.raises(ValueError, match="The feature names should match"):
        model.predict(table[names[::-1]])


def test_set_output_of_a_transformer_before_it():
    pytest.importorskip("pandas")
    scaler = StandardScaler().set_output(transform="pandas")
    model = make_pipeline(scaler, small()).fit(X, Y)
    assert model.predict(X).shape == (400,)


def test_metadata_routing():
    weight = np.where(Y == 3, 5.0, 1.0)
    with sklearn.config_context(enable_metadata_routing=True):
        model = small().set_fit_request(sample_weight=True, X_val=True, y_val=True)
        routed = make_pipeline(FunctionTransformer(), model).fit(X, Y, sample_weight=weight, X_val=X[:50], y_val=Y[:50])
    plain = small().fit(X, Y, weight)
    assert np.array_equal(routed[-1].coefs_[0], plain.coefs_[0])
    assert len(routed[-1].validation_loss_curve_) == plain.n_iter_


def test_calibration_and_bagging_and_importance():
    calibrated = CalibratedClassifierCV(small(), cv=3).fit(X, Y)
    np.testing.assert_allclose(calibrated.predict_proba(X).sum(axis=1), 1)
    bagged = BaggingClassifier(small(), n_estimators=3, random_state=0, n_jobs=2).fit(X, Y)
    assert bagged.score(X, Y) > 0.7
    table, target = load_diabetes(return_X_y=True)
    regressor = MLPRegressor(solver="lbfgs", alpha=10, max_iter=50, tol=1e-2, random_state=0).fit(table, scale(target))
    importance = permutation_importance(regressor, table, scale(target), n_repeats=2, random_state=0)
    assert importance.importances_mean.shape == (10,)


def test_cross_validation_from_threads():
    """Engines belong to threads, estimators to whoever made them."""
    from joblib import parallel_config

    with parallel_config("threading", n_jobs=2):
        scores = cross_val_score(small(), X, Y, cv=4)
    assert np.array_equal(scores, cross_val_score(small(), X, Y, cv=4))


def test_callbacks_of_scikit_learn():
    callback = pytest.importorskip("sklearn.callback")
    events = []

    class Watch:
        def setup(self, estimator, context):
            events.append("setup")

        def teardown(self, estimator, context):
            events.append("teardown")

        def on_fit_task_begin(self, estimator, context):
            events.append(f"{context.task_name} begins")

        def on_fit_task_end(self, estimator, context, *, X, fitted_estimator):
            if context.task_name == "epoch":
                events.append(round(fitted_estimator.score(X, Y), 6))
                return len(events) > 12
            return None

    model = small(max_iter=50).set_callbacks(Watch())
    model.fit(X, Y)
    assert events[0] == "setup"
    assert events[-1] == "teardown"
    assert model.n_iter_ == 6
    assert events[-2] == round(model.score(X, Y), 6)
    small(max_iter=3).set_callbacks(callback.ProgressBar()).fit(X, Y)
    search = GridSearchCV(small(max_iter=2), {"alpha": [1, 2]}, cv=2)
    if hasattr(search, "set_callbacks"):
        search.set_callbacks(callback.ProgressBar()).fit(X, Y)


def test_backends_are_chosen_when_a_model_is_fitted():
    with fusedmlp.use_backend("numpy"):
        model = small().fit(X, Y)
        assert model._linked.network.backend.name == "numpy"
    with fusedmlp.use_backend("numba-cpu"):
        model.predict(X)
        assert model._linked.network.backend.name == "numpy"
        model.partial_fit(X, Y)
        assert model._linked.network.backend.name == "numba-cpu"
    with pytest.raises(ValueError, match="FUSEDMLP_BACKEND|backend"), fusedmlp.use_backend("abacus"):
        small().fit(X, Y)
