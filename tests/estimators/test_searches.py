"""Searches whose candidates are trained side by side: results are those of scikit-learn's, to the bit."""

from __future__ import annotations

import re

import numpy as np
import pytest
from scipy.stats import loguniform
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_digits
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.feature_selection import SelectKBest, f_classif
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    HalvingGridSearchCV,
    KFold,
    RandomizedSearchCV,
    ShuffleSplit,
    cross_validate,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import fusedmlp
from fusedmlp import (
    MLPClassifier,
    MLPGridSearchCV,
    MLPRandomizedSearchCV,
    MLPRegressor,
    MLPSuccessiveHalvingSearchCV,
    cross_validate_mlp,
)

pytestmark = pytest.mark.filterwarnings("ignore")
X, y = (part[:400] for part in load_digits(return_X_y=True))
GRID = {"hidden_layer_sizes": [(8,), (16, 8)], "alpha": [1e-4, 1e-2]}
MODEL = MLPClassifier(random_state=0, max_iter=12)


@pytest.fixture(autouse=True, params=["numba-cpu", "numpy"])
def backend(request):
    with fusedmlp.use_backend(request.param):
        yield request.param


def assert_same_search(theirs, ours):
    assert ours.cv_results_.keys() == theirs.cv_results_.keys()
    for name, expected in theirs.cv_results_.items():
        if "time" not in name:
            assert repr(ours.cv_results_[name]) == repr(expected), name
    assert (ours.cv_results_["mean_fit_time"] > 0).all()
    assert ours.best_params_ == theirs.best_params_
    assert type(ours.best_estimator_) is type(theirs.best_estimator_)
    np.testing.assert_array_equal(ours.predict_proba(X), theirs.predict_proba(X))


PIPELINE = make_pipeline(StandardScaler(), SelectKBest(f_classif, k=40), MODEL)
PIPELINE_GRID = {"mlpclassifier__alpha": [1e-4, 1e-2], "selectkbest__k": [20, 40]}
CASES = {
    "grid": (GridSearchCV, MLPGridSearchCV, (MODEL, GRID), {"cv": 3, "return_train_score": True}),
    "early stopping and schedules": (
        GridSearchCV,
        MLPGridSearchCV,
        (
            clone(MODEL).set_params(solver="sgd", learning_rate_init=0.05, n_iter_no_change=2, tol=0.01),
            {"learning_rate": ["constant", "invscaling", "adaptive"], "early_stopping": [False, True]},
        ),
        {"cv": 3},
    ),
    "lbfgs among others": (
        GridSearchCV,
        MLPGridSearchCV,
        (MODEL, [{"solver": ["lbfgs"]}, {"batch_size": [16, 64], "shuffle": [False], "dropout": [0.0, 0.2]}]),
        {"cv": 3},
    ),
    "pipeline": (GridSearchCV, MLPGridSearchCV, (PIPELINE, PIPELINE_GRID), {"cv": 3, "n_jobs": 2}),
    "several scores": (
        RandomizedSearchCV,
        MLPRandomizedSearchCV,
        (MODEL, {"alpha": loguniform(1e-5, 1e-1), "activation": ["relu", "tanh"]}),
        {"cv": 3, "n_iter": 4, "random_state": 0, "scoring": ["accuracy", "neg_log_loss"], "refit": "neg_log_loss"},
    ),
    "halving by epochs": (
        HalvingGridSearchCV,
        MLPSuccessiveHalvingSearchCV,
        (MODEL, GRID),
        {"cv": 3, "resource": "max_iter", "max_resources": 12, "factor": 2, "random_state": 0},
    ),
    "halving by samples": (
        HalvingGridSearchCV,
        MLPSuccessiveHalvingSearchCV,
        (MODEL, GRID),
        {"cv": 3, "factor": 2, "random_state": 0, "min_resources": 150},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_results_are_scikit_learns(case):
    theirs, ours, arguments, options = CASES[case]
    expected = theirs(*arguments, **options).fit(X, y)
    got = ours(*arguments, **options).fit(X, y)
    assert_same_search(expected, got)
    assert got.estimator is arguments[0]
    assert got.n_jobs == options.get("n_jobs")


def test_groups_and_sample_weights():
    weights, groups = np.random.default_rng(0).uniform(0.5, 2, len(y)), np.arange(len(y)) // 10
    given = {"groups": groups, "mlpclassifier__sample_weight": weights}
    searches = [
        kind(PIPELINE, PIPELINE_GRID, cv=GroupKFold(3)).fit(X, y, **given) for kind in (GridSearchCV, MLPGridSearchCV)
    ]
    assert_same_search(*searches)


class CountingScaler(StandardScaler):
    fits = 0

    def fit(self, X, y=None, sample_weight=None):
        CountingScaler.fits += 1
        return super().fit(X, y, sample_weight)


def test_preprocessing_is_done_once_for_a_split():
    CountingScaler.fits = 0
    grid = {"mlpclassifier__alpha": [1e-4, 1e-3, 1e-2]}
    MLPGridSearchCV(make_pipeline(CountingScaler(), MODEL), grid, cv=3, refit=False).fit(X, y)
    assert CountingScaler.fits == 3


def test_regression():
    table, target = load_diabetes(return_X_y=True)
    model = MLPRegressor(hidden_layer_sizes=(8,), max_iter=10, random_state=0)
    searches = [kind(model, {"alpha": [0.1, 1.0]}, cv=3).fit(table, target) for kind in (GridSearchCV, MLPGridSearchCV)]
    scores = [search.cv_results_["mean_test_score"] for search in searches]
    np.testing.assert_array_equal(*scores)


@pytest.mark.parametrize("scoring", [None, ["accuracy", "f1_macro"]])
def test_cross_validation(scoring):
    options = {"scoring": scoring, "return_estimator": True, "return_train_score": True}
    # Splits are drawn once, not once for the training and once for the scores.
    ours, theirs = (
        run(MODEL, X, y, cv=ShuffleSplit(3, random_state=np.random.RandomState(0)), **options)
        for run in (cross_validate_mlp, cross_validate)
    )
    assert ours.keys() == theirs.keys()
    for name in theirs.keys() - {"estimator", "fit_time", "score_time"}:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    assert (ours["fit_time"] > 0).all()
    for got, expected in zip(ours["estimator"], theirs["estimator"], strict=True):
        assert type(got) is MLPClassifier
        np.testing.assert_array_equal(got.coefs_[0], expected.coefs_[0])


def test_a_candidate_that_fails_has_the_error_score():
    grid = {"alpha": [1e-4, -1.0]}
    searches = [kind(MODEL, grid, cv=3).fit(X, y) for kind in (GridSearchCV, MLPGridSearchCV)]
    assert_same_search(*searches)
    assert np.isnan(searches[1].cv_results_["mean_test_score"][1])
    with pytest.raises(ValueError, match="The 'alpha' parameter"):
        MLPGridSearchCV(MODEL, grid, cv=3, error_score="raise").fit(X, y)


def test_a_search_that_ends_with_an_error_leaves_its_parameters():
    search = MLPGridSearchCV(MODEL, {"alpha": [-1.0]}, cv=3, error_score="raise", n_jobs=2)
    with pytest.raises(ValueError, match="alpha"):
        search.fit(X, y)
    assert search.estimator is MODEL
    assert search.n_jobs == 2
    assert not any(name.startswith("_") for name in vars(search) if name not in ("_checked_cv_orig",))


@pytest.mark.parametrize(
    ("search", "labels", "message"),
    [
        (MLPGridSearchCV(MODEL, {"alpah": [1]}), y, "candidate 0, {'alpah': 1}: Invalid parameter 'alpah'"),
        (MLPGridSearchCV(MODEL, GRID, cv=KFold(4)), np.sort(y), "cv: split 0 has no sample of class 0 to train on"),
        (
            MLPGridSearchCV(MODEL, GRID, cv=[(np.arange(9), np.arange(0))]),
            y,
            "cv: split 0 has 9 samples to train on and 0 to score",
        ),
        (
            MLPGridSearchCV(StandardScaler(), {}),
            y,
            "estimator: expected MLPClassifier or MLPRegressor of fusedmlp, or a Pipeline that ends in one; "
            "got StandardScaler",
        ),
        (
            MLPGridSearchCV(make_pipeline(MODEL, StandardScaler()), {}),
            y,
            "got Pipeline that ends in StandardScaler",
        ),
    ],
    ids=["parameter", "class", "empty split", "estimator", "pipeline"],
)
def test_bad_input(search, labels, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        search.fit(X, labels)
