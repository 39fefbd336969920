"""Fitted models to and from scikit-learn's own classes, and to ONNX."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_diabetes, load_digits
from sklearn.preprocessing import scale

import fusedmlp
from fusedmlp import MLPClassifier, MLPRegressor
from fusedmlp.estimators.patching import sklearn_class

DIGITS = load_digits(return_X_y=True)
DIGITS = DIGITS[0][:300] / 16, DIGITS[1][:300]
DIABETES = load_diabetes(return_X_y=True)
DIABETES = scale(DIABETES[0]), scale(DIABETES[1])
CASES = {
    "adam": (MLPClassifier, DIGITS, {}),
    "sgd": (MLPClassifier, (DIGITS[0], DIGITS[1] > 4), {"solver": "sgd", "learning_rate": "invscaling"}),
    "early stopping": (MLPClassifier, DIGITS, {"early_stopping": True}),
    "lbfgs": (MLPRegressor, DIABETES, {"solver": "lbfgs", "max_iter": 15}),
    "numbers": (MLPRegressor, DIABETES, {"activation": "tanh", "hidden_layer_sizes": (20, 10)}),
}
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture(autouse=True, params=["numpy", "numba-cpu"])
def backend(request):
    with fusedmlp.use_backend(request.param):
        yield


def fitted(name):
    kind, (X, y), parameters = CASES[name]
    return kind(**{"random_state": 0, "max_iter": 8} | parameters).fit(X, y), X, y


@pytest.mark.parametrize("name", CASES)
def test_there_and_back(name):
    model, X, y = fitted(name)
    theirs = model.to_sklearn()
    assert type(theirs) is sklearn_class(type(model).__name__)
    np.testing.assert_allclose(theirs.predict(X), model.predict(X), rtol=1e-10)
    back = type(model).from_sklearn(theirs)
    assert back.get_params() == model.get_params()
    assert np.array_equal(back.predict(X), model.predict(X))
    if model.solver != "lbfgs" and not model.early_stopping:
        for estimator in (model, theirs, back):
            estimator.partial_fit(X, y)
        for other in (theirs, back):
            np.testing.assert_allclose(other.coefs_[0], model.coefs_[0], rtol=0, atol=1e-10)


def test_conversion_while_patched():
    model, X, _ = fitted("adam")
    fusedmlp.patch_sklearn()
    try:
        theirs = model.to_sklearn()
    finally:
        fusedmlp.unpatch_sklearn()
    assert type(theirs).__module__ == "sklearn.neural_network._multilayer_perceptron"
    assert np.array_equal(theirs.predict(X), model.predict(X))


def test_unfitted_models_and_what_cannot_be_converted():
    assert MLPClassifier(alpha=3).to_sklearn().alpha == 3
    with pytest.raises(ValueError, match="activation: scikit-learn has .*; got 'gelu'"):
        MLPClassifier(activation="gelu").to_sklearn()
    with pytest.raises(ValueError, match="model: expected scikit-learn's MLPRegressor; got MLPClassifier"):
        MLPRegressor.from_sklearn(sklearn_class("MLPClassifier")())


@pytest.mark.parametrize("name", ["adam", "sgd", "numbers"])
def test_onnx(name):
    skl2onnx = pytest.importorskip("skl2onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    model, X, _ = fitted(name)
    X = X.astype(np.float32)
    options = {"zipmap": False} if name != "numbers" else None
    graph = skl2onnx.to_onnx(model.to_sklearn(), X[:1], options=options)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    results = session.run(None, {session.get_inputs()[0].name: X})
    expected = model.predict(X) if name == "numbers" else model.predict_proba(X)
    np.testing.assert_allclose(np.reshape(results[-1], expected.shape), expected, rtol=1e-3, atol=1e-4)
