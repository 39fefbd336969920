"""scikit-learn's own tests of its MLPs, on this package's classes."""

from __future__ import annotations

import importlib
import sys

import pytest
from sklearn.utils.estimator_checks import check_estimator

import fusedmlp
from fusedmlp.estimators.patching import sklearn_class

_MODULE = "sklearn.neural_network.tests.test_mlp"


def _imported_while_patched():
    """The module of tests; its globals and parameters are this package's classes."""
    sys.modules.pop(_MODULE, None)
    fusedmlp.patch_sklearn()
    try:
        return importlib.import_module(_MODULE)
    finally:
        fusedmlp.unpatch_sklearn()
        sys.modules.pop(_MODULE, None)


_TESTS = _imported_while_patched()
globals().update({name: test for name, test in vars(_TESTS).items() if name.startswith("test_")})
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(autouse=True, params=["numpy", "numba-cpu"])
def backend(request):
    with fusedmlp.use_backend(request.param):
        yield request.param


@pytest.fixture
def global_random_seed():
    """What scikit-learn's own conftest has."""
    return 42


def test_the_tests_are_of_this_package():
    assert _TESTS.MLPClassifier is fusedmlp.MLPClassifier
    assert len([name for name in vars(_TESTS) if name.startswith("test_")]) >= 40


@pytest.mark.parametrize("backend", ["numba-cpu"], indirect=True)
@pytest.mark.parametrize("name", ["MLPClassifier", "MLPRegressor"])
def test_checks_of_estimators(name):
    """Every check ends as it does on scikit-learn's own class: passed, or skipped for the same reason."""

    def outcomes(kind):
        results = check_estimator(kind(), on_skip=None, on_fail=None)
        return {
            (result["check_name"], str(result.get("check_params"))): (result["status"], str(result["exception"]))
            for result in results
        }

    ours, theirs = outcomes(getattr(fusedmlp, name)), outcomes(sklearn_class(name))
    assert {check for check, _ in ours.keys() - theirs.keys()} <= {"check_class_weight_classifiers"}
    different = {check: (ours[check], theirs[check]) for check in theirs if ours[check][0] != theirs[check][0]}
    assert different == {}
    assert {status for status, _ in ours.values()} <= {"passed", "skipped"}
