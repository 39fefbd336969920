"""What this package's estimators have beyond scikit-learn's, and how they meet bad input."""

from __future__ import annotations

import inspect
import pickle
import re
import warnings

import joblib
import numpy as np
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_digits, make_classification
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.metrics import balanced_accuracy_score, log_loss
from sklearn.preprocessing import scale
from sklearn.utils.class_weight import compute_sample_weight

import fusedmlp
from fusedmlp import LossCurveDisplay, MLPClassifier, MLPRegressor
from fusedmlp.backends.numpy_backend import NumpyBackend
from fusedmlp.estimators.patching import sklearn_class
from fusedmlp.estimators.versions import check_version

X, Y = load_digits(return_X_y=True)
X, Y = X[:600] / 16, Y[:600]
X_VAL, Y_VAL = load_digits(return_X_y=True)
X_VAL, Y_VAL = X_VAL[600:900] / 16, Y_VAL[600:900]
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture(autouse=True, params=["numpy", "numba-cpu"])
def backend(request):
    with fusedmlp.use_backend(request.param):
        yield request.param


def weights_of(estimator):
    return np.concatenate([np.ravel(x) for x in [*estimator.coefs_, *estimator.intercepts_]])


@pytest.mark.parametrize("kind", [MLPClassifier, MLPRegressor])
def test_parameters_are_scikit_learns_first(kind):
    ours, theirs = (
        {name: p.default for name, p in inspect.signature(k.__init__).parameters.items()}
        for k in (kind, sklearn_class(kind.__name__))
    )
    assert {name: ours[name] for name in theirs} == theirs
    assert list(ours)[: len(theirs)] == list(theirs)
    for name in set(ours) - set(theirs):
        line = rf"^    {name} : .*default={re.escape(str(ours[name]))}"
        assert re.search(line, kind.__doc__.replace("'", ""), re.MULTILINE), name


def test_class_weights_are_sample_weights():
    counts = np.r_[np.arange(200), np.arange(300, 320)]
    rare, labels = X[counts], (np.arange(220) >= 200).astype(int)
    for class_weight in ("balanced", {0: 1.0, 1: 7.0}):
        weighted = MLPClassifier(class_weight=class_weight, max_iter=5, random_state=0).fit(rare, labels)
        sample_weight = compute_sample_weight(class_weight, labels)
        plain = MLPClassifier(max_iter=5, random_state=0).fit(rare, labels, sample_weight)
        assert np.array_equal(weights_of(weighted), weights_of(plain))
    one_step = MLPClassifier(class_weight={0: 1.0, 1: 7.0}, random_state=0).partial_fit(rare, labels, classes=[0, 1])
    assert one_step.n_iter_ == 1
    with pytest.raises(ValueError, match="class_weight: 'balanced' is not for partial_fit"):
        MLPClassifier(class_weight="balanced").partial_fit(rare, labels, classes=[0, 1])


def test_validation_samples_of_ones_own():
    model = MLPClassifier(max_iter=12, random_state=0).fit(X, Y, X_val=X_VAL, y_val=Y_VAL)
    assert len(model.validation_loss_curve_) == len(model.validation_scores_) == len(model.loss_curve_) == 12
    assert model.validation_scores_[-1] == pytest.approx(model.score(X_VAL, Y_VAL))
    assert model.validation_loss_curve_[-1] == pytest.approx(log_loss(Y_VAL, model.predict_proba(X_VAL)), rel=1e-6)
    plain = MLPClassifier(max_iter=12, random_state=0).fit(X, Y)
    assert np.array_equal(weights_of(model), weights_of(plain))
    assert plain.validation_loss_curve_ is None


def test_early_stopping_on_them_puts_the_best_weights_back():
    settings = {"early_stopping": True, "learning_rate_init": 0.02, "n_iter_no_change": 3, "random_state": 0}
    model = MLPClassifier(**settings).fit(X, Y, X_val=X_VAL, y_val=Y_VAL)
    assert model.score(X_VAL, Y_VAL) == max(model.validation_scores_) == model.best_validation_score_
    assert model.t_ == 600 * model.n_iter_  # no sample is held back


@pytest.mark.parametrize("scoring", ["loss", "balanced_accuracy", "roc_auc_ovr"])
def test_scoring(scoring):
    model = MLPClassifier(max_iter=5, random_state=0, early_stopping=True, scoring=scoring)
    model.fit(X, Y, X_val=X_VAL, y_val=Y_VAL)
    best = int(np.argmax(model.validation_scores_))
    assert model.best_validation_score_ == model.validation_scores_[best]
    if scoring == "loss":
        assert model.validation_scores_ == [-loss for loss in model.validation_loss_curve_]
    if scoring == "balanced_accuracy":
        assert model.best_validation_score_ == pytest.approx(balanced_accuracy_score(Y_VAL, model.predict(X_VAL)))


def test_scorers_of_ones_own_get_labels_and_names():
    pd = pytest.importorskip("pandas")
    seen = []

    def scorer(estimator, X, y):
        seen.append((len(X), set(y)))
        return estimator.score(X, y)

    table = pd.DataFrame(X).add_prefix("pixel")
    labels = np.array(list("abcdefghij"))[Y]
    model = MLPClassifier(max_iter=3, random_state=0, early_stopping=True, scoring=scorer)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(table, labels)
    assert seen[0][0] == 60
    assert seen[0][1] <= set(labels)


def test_restore_best_without_early_stopping():
    settings = {"max_iter": 30, "learning_rate_init": 0.05, "random_state": 0}
    model = MLPClassifier(restore_best=True, **settings).fit(X, Y, X_val=X_VAL, y_val=Y_VAL)
    assert model.score(X_VAL, Y_VAL) == max(model.validation_scores_)
    with pytest.raises(ValueError, match="restore_best: needs samples to validate on"):
        MLPClassifier(restore_best=True).fit(X, Y)


def test_schedules_for_adam():
    rates = []

    def schedule(epoch, rate):
        rates.append((epoch, rate))
        return 0.0 if epoch else rate

    model = MLPClassifier(max_iter=4, random_state=0, schedule=schedule, tol=0).fit(X, Y)
    assert rates == [(epoch, 0.001) for epoch in range(4)]
    once = MLPClassifier(max_iter=1, random_state=0).fit(X, Y)
    assert np.array_equal(weights_of(model), weights_of(once))
    cosine = MLPClassifier(max_iter=4, random_state=0, schedule="cosine").fit(X, Y)
    assert not np.array_equal(weights_of(cosine), weights_of(MLPClassifier(max_iter=4, random_state=0).fit(X, Y)))


def test_clipping_and_decay_and_dropout():
    plain = MLPClassifier(max_iter=3, random_state=0, solver="sgd", alpha=0, learning_rate_init=0.5).fit(X, Y)
    clipped = clone(plain).set_params(clip_norm=1e-3).fit(X, Y)
    first = MLPClassifier(max_iter=1, random_state=0, solver="sgd", alpha=0, learning_rate_init=1e-12).fit(X, Y)
    moved = [np.linalg.norm(weights_of(model) - weights_of(first)) for model in (plain, clipped)]
    assert moved[1] < 3 * 3 * 0.5 * 1e-3 * 10 < moved[0]  # nine steps with momentum, none longer than rate · clip_norm
    decayed = MLPClassifier(max_iter=30, random_state=0, weight_decay=0.5).fit(X, Y)
    kept = MLPClassifier(max_iter=30, random_state=0).fit(X, Y)
    assert np.abs(decayed.coefs_[0]).sum() < np.abs(kept.coefs_[0]).sum()
    dropped = [MLPClassifier(max_iter=3, random_state=0, dropout=rate).fit(X, Y) for rate in (0.5, 0.5, [0.1, 0.0])]
    assert np.array_equal(weights_of(dropped[0]), weights_of(dropped[1]))
    assert not np.array_equal(weights_of(dropped[0]), weights_of(dropped[2]))


def test_keep_optimizer():
    """Fits of two epochs that keep the moments are partial fits: the same batches, the same steps."""
    kept = MLPClassifier(max_iter=2, random_state=0, warm_start=True, keep_optimizer=True, shuffle=False)
    kept.fit(X, Y).fit(X, Y)
    steps = MLPClassifier(random_state=0, shuffle=False)
    for _ in range(4):
        steps.partial_fit(X, Y, classes=range(10))
    assert np.array_equal(weights_of(kept), weights_of(steps))


@pytest.mark.parametrize("activation", ["leaky_relu", "elu", "selu", "softplus", "gelu", "silu", "mish", "softsign"])
def test_more_activations(activation):
    model = MLPClassifier(activation=activation, max_iter=40, random_state=0).fit(X, Y)
    assert model.score(X, Y) > 0.9
    network = fusedmlp.Network([64, 100, 10], activation, "categorical_cross_entropy", dtype="float64")
    network.parameters.flat[...] = np.concatenate(
        [np.ravel(x) for pair in zip(model.coefs_, model.intercepts_, strict=True) for x in pair]
    )
    np.testing.assert_allclose(model.predict_proba(X), network.forward(X.T).T, rtol=0, atol=1e-12)


def test_pickles_go_on_training(tmp_path):
    model = MLPClassifier(max_iter=3, random_state=0).fit(X, Y)
    joblib.dump(model, tmp_path / "model.joblib")
    copies = [pickle.loads(pickle.dumps(model)), joblib.load(tmp_path / "model.joblib")]
    for copy in copies:
        assert all(type(W) is np.ndarray for W in copy.coefs_)
        assert np.array_equal(copy.predict_proba(X), model.predict_proba(X))
    for estimator in (model, *copies):
        estimator.partial_fit(X, Y).partial_fit(X, Y)
    for copy in copies:
        assert np.array_equal(weights_of(copy), weights_of(model))


def test_weights_can_be_written_and_replaced():
    model = MLPClassifier(max_iter=2, random_state=0).fit(X, Y)
    other = pickle.loads(pickle.dumps(model))
    model.coefs_[1][:] = 0
    model.intercepts_[1][:] = np.arange(10)
    assert set(model.predict(X)) == {9}
    other.coefs_[1] = np.zeros((100, 10))
    other.intercepts_ = [other.intercepts_[0], -np.arange(10.0)]
    assert set(other.predict(X)) == {0}
    other.partial_fit(X, Y)
    assert other.coefs_[1].any()


def test_predictions_after_a_change_of_dtype():
    model = MLPClassifier(max_iter=2, random_state=0).fit(X.astype(np.float32), Y)
    assert model.predict_proba(X).shape == (600, 10)
    model.partial_fit(X, Y)
    assert model.coefs_[0].dtype == np.float32


# Bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"activation": "ghost"}, "The 'activation' parameter of MLPClassifier must be a str among"),
        ({"hidden_layer_sizes": (3, -1)}, r"hidden_layer_sizes must be > 0, got \[3, -1\]."),
        ({"alpha": -1}, "The 'alpha' parameter of MLPClassifier must be a float in the range"),
        ({"clip_norm": 0}, "The 'clip_norm' parameter of MLPClassifier"),
        ({"schedule": "sine"}, "The 'schedule' parameter of MLPClassifier"),
        ({"weight_decay": 0.1, "solver": "sgd"}, "weight_decay: expected solver='adam'; got solver='sgd'"),
        ({"dropout": 0.1, "solver": "lbfgs"}, "dropout: expected a solver that works in epochs"),
        ({"dropout": [0.1]}, "dropout: expected a number, or 2 of them"),
        ({"class_weight": "heavy"}, "The 'class_weight' parameter of MLPClassifier"),
    ],
)
def test_wrong_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        MLPClassifier(**parameters).fit(X, Y)


def test_wrong_validation_samples():
    with pytest.raises(ValueError, match="X_val and y_val: expected both or neither"):
        MLPClassifier().fit(X, Y, X_val=X_VAL)
    with pytest.raises(ValueError, match="X has 10 features, but MLPClassifier is expecting 64"):
        MLPClassifier().fit(X, Y, X_val=X_VAL[:, :10], y_val=Y_VAL)
    with pytest.raises(ValueError, match=r"y_val: expected classes of y, \[0 1 2\]"):
        MLPClassifier().fit(X[Y < 3], Y[Y < 3], X_val=X_VAL, y_val=Y_VAL)
    with pytest.raises(ValueError, match="X_val: expected a solver that works in epochs"):
        MLPClassifier(solver="lbfgs").fit(X, Y, X_val=X_VAL, y_val=Y_VAL)


def test_negative_counts():
    with pytest.raises(ValueError, match="y: loss='poisson' expects numbers >= 0; the smallest is -1"):
        MLPRegressor(loss="poisson").fit(X, np.where(Y == 3, -1, Y))


def test_targets_that_float32_cannot_hold():
    with pytest.raises(ValueError, match=r"y: expected numbers that float32, the type of X, can hold; got 5e\+40"):
        MLPRegressor().fit(X.astype(np.float32), np.where(Y == 3, -5e40, Y))


def test_not_fitted():
    with pytest.raises(NotFittedError):
        MLPClassifier().predict(X)
    with pytest.raises(ValueError, match="expected one with a loss_curve_"):
        LossCurveDisplay.from_estimator(MLPClassifier(solver="lbfgs", max_iter=2).fit(X, Y))


def test_divergence_names_epoch_and_layer():
    table, target = load_diabetes(return_X_y=True)
    settings = {"solver": "sgd", "learning_rate_init": 30.0, "activation": "identity", "random_state": 0}
    model = MLPRegressor(**settings)
    message = r"Solver produced non-finite parameter weights\..*The loss is .* in epoch \d+; coefs_\[\d\] of layer \d"
    with np.errstate(all="ignore"), pytest.raises(ValueError, match=message):
        model.fit(scale(table), scale(target))
    assert np.isfinite(weights_of(model)).all()
    assert np.isfinite(model.predict(scale(table))).all()
    held_back = MLPRegressor(early_stopping=True, **settings)
    with np.errstate(all="ignore"), pytest.warns(ConvergenceWarning, match="it diverged.* best validation score"):
        held_back.fit(scale(table), scale(target))
    assert np.isfinite(weights_of(held_back)).all()
    assert np.isnan(held_back.validation_scores_[-1])


def test_a_line_for_what_is_slow(caplog, monkeypatch):
    monkeypatch.setattr("fusedmlp.estimators.activity._said", set())
    monkeypatch.setattr(NumpyBackend, "takes_sparse", False)
    table = sparse.csr_matrix(X)
    for _ in range(2):
        with fusedmlp.use_backend("numpy"):
            MLPClassifier(max_iter=1).fit(table, Y)
        MLPClassifier(max_iter=1, solver="sgd", momentum=1, learning_rate_init=1e-6).fit(X, Y)
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "MLPClassifier.fit: sparse X is made dense batch by batch on numpy",
        "MLPClassifier.fit: momentum=1 has no compiled step: each batch is a call, and its step runs in Python",
    ]


def test_a_line_for_an_untested_version(caplog):
    for version in ("1.6.0", "1.9.1", "1.7.dev0"):
        check_version(version)
    assert not caplog.records
    check_version("2.0.0")
    check_version("1.5.2")
    assert [record.getMessage() for record in caplog.records] == [
        f"scikit-learn {version}: the estimators of fusedmlp were tested with 1.6 to 1.9"
        for version in ("2.0.0", "1.5.2")
    ]


# Quantiles and their kin ----------------------------------------------------------------------------------------------


def test_quantiles_and_medians():
    rng = np.random.default_rng(0)
    table, noise = rng.uniform(-1, 1, size=(2000, 1)), rng.exponential(size=2000)
    target = table[:, 0] + noise
    settings = {"hidden_layer_sizes": (8,), "learning_rate_init": 0.01, "max_iter": 150, "random_state": 0, "tol": 0}
    for quantile in (0.1, 0.9):
        model = MLPRegressor("quantile", quantile=quantile, **settings).fit(table, target)
        assert np.mean(target < model.predict(table)) == pytest.approx(quantile, abs=0.05)
    median = MLPRegressor("absolute_error", **settings).fit(table, target)
    assert np.mean(target < median.predict(table)) == pytest.approx(0.5, abs=0.05)
    assert median.loss_ == pytest.approx(np.abs(median.predict(table) - target).mean(), rel=0.05)
    outliers = np.where(np.arange(2000) % 50 == 0, 1000.0, target)
    huber = MLPRegressor("huber", delta=0.5, **settings).fit(table, outliers)
    assert np.abs(huber.predict(table) - table[:, 0] - 1).mean() < 0.4
    for model in (median, huber):
        assert model._linked.network.engine.kind == ("composed" if fusedmlp.get_backend().name == "numpy" else "fused")


# Curves ---------------------------------------------------------------------------------------------------------------


def test_loss_curve_display():
    import matplotlib as mpl

    mpl.use("Agg")
    model = MLPClassifier(max_iter=6, random_state=0, early_stopping=True).fit(X, Y)
    display = LossCurveDisplay.from_estimator(model)
    assert list(display.line_.get_ydata()) == model.loss_curve_
    assert list(display.validation_line_.get_ydata()) == model.validation_loss_curve_
    assert display.best_epoch == 1 + int(np.argmax(model.validation_scores_))
    assert {text.get_text() for text in display.ax_.get_legend().get_texts()} == {
        "MLPClassifier: training",
        "MLPClassifier: validation",
        f"best epoch: {display.best_epoch}",
    }
    theirs = sklearn_class("MLPClassifier")(max_iter=3).fit(X, Y)
    again = LossCurveDisplay.from_estimator(theirs, name="theirs", ax=display.ax_)
    assert again.ax_ is display.ax_
    assert again.validation_line_ is None
    mpl.pyplot.close("all")


def test_verbose(capsys):
    model = MLPClassifier(max_iter=2, random_state=0, verbose=True, early_stopping=True).fit(X, Y)
    out = capsys.readouterr().out
    assert f"Iteration 2, loss = {model.loss_:.8f}" in out
    assert f"Validation score: {model.validation_scores_[0]:f}" in out
    MLPClassifier(max_iter=2, random_state=0, verbose="bar").fit(X, Y)
    assert capsys.readouterr() == ("", "")  # no terminal
    MLPClassifier(max_iter=2, random_state=0, verbose=True, solver="lbfgs").fit(X, Y)
    assert "Iteration 1, loss = " in capsys.readouterr().out


def test_html_links_to_the_documentation():
    html = MLPClassifier()._repr_html_()
    assert 'href="https://fusedmlp.readthedocs.io/en/latest/scikit-learn.html#mlpclassifier"' in html


def test_one_class_and_one_sample():
    model = MLPClassifier(max_iter=2).fit(X[:5], np.zeros(5))
    assert set(model.predict(X)) == {0.0}
    data, labels = make_classification(n_samples=20, random_state=0)
    assert MLPClassifier(max_iter=2, batch_size=1).fit(data, labels).predict(data[:1]).shape == (1,)
