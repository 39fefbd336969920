"""Fitted models to and from scikit-learn's own classes: weights, classes, curves, and the optimizer's moments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fusedmlp.estimators.linking import packed
from fusedmlp.estimators.patching import sklearn_class
from fusedmlp.estimators.solver_steps import SolverSteps
from fusedmlp.model.optimizers import Adam

_PRIVATE = ("_label_binarizer", "_no_improvement_count", "_random_state")
_OWN = ("validation_loss_curve_",)
"""Fitted attributes that scikit-learn's classes have not got."""


def to_sklearn(estimator: Any, name: str) -> Any:
    """An estimator of scikit-learn's own class with the same parameters and, where it is fitted, the same weights.

    Parameters
    ----------
    estimator : MLPClassifier or MLPRegressor
    name : str
        Of scikit-learn's class.

    Raises
    ------
    ValueError
        The activation or the loss is none of scikit-learn's: it would predict something else.
    """
    kind = sklearn_class(name)
    parameters = {key: getattr(estimator, key) for key in kind._get_param_names()}  # type: ignore[attr-defined]
    for parameter in ("activation", "loss"):
        options = kind._parameter_constraints.get(parameter, [])  # type: ignore[attr-defined]
        allowed = [option for constraint in options for option in getattr(constraint, "options", ())]
        if parameter in parameters and parameters[parameter] not in allowed:
            raise ValueError(f"{parameter}: scikit-learn has {sorted(allowed)}; got {parameters[parameter]!r}")
    if parameters["verbose"] == "bar":
        parameters["verbose"] = True
    other = kind(**parameters)
    if not hasattr(estimator, "coefs_"):
        return other
    for attribute, value in _fitted(estimator).items():
        setattr(other, attribute, value)
    other.coefs_, other.intercepts_ = _copies(estimator.coefs_), _copies(estimator.intercepts_)
    shapes = [W.shape for W in other.coefs_]
    if hasattr(estimator, "_best_parameters"):
        other._best_coefs, other._best_intercepts = _unpacked(estimator._best_parameters, shapes)
    if hasattr(estimator, "_optimizer"):
        other._optimizer = _their_optimizer(estimator, other, shapes)
    return other


def from_sklearn(kind: type, model: Any) -> Any:
    """An estimator of this package with the parameters and, where it is fitted, the weights of scikit-learn's.

    Parameters
    ----------
    kind : type
        MLPClassifier or MLPRegressor of this package.
    model : estimator of scikit-learn's class of that name

    Raises
    ------
    ValueError
        The model is of another class.
    """
    theirs: Any = sklearn_class(kind.__name__)
    fitted = model
    if not isinstance(model, theirs):
        raise ValueError(f"model: expected scikit-learn's {kind.__name__}; got {type(model).__name__}")
    estimator: Any = kind(**fitted.get_params(deep=False))
    if hasattr(fitted, "coefs_"):
        vars(estimator).update(_fitted(fitted))
        estimator.coefs_, estimator.intercepts_ = _copies(fitted.coefs_), _copies(fitted.intercepts_)
        adopt(estimator, vars(fitted))
    return estimator


def adopt(estimator: Any, attributes: dict[str, Any]) -> None:
    """Turn private attributes of scikit-learn's class, also from a pickle of it, into those of this package.

    Parameters
    ----------
    estimator : MLPClassifier or MLPRegressor
        With its `coefs_`.
    attributes : dict
        Of scikit-learn's estimator.
    """
    for private in ("_best_coefs", "_best_intercepts", "_optimizer", "_sklearn_version"):
        estimator.__dict__.pop(private, None)
    if "_best_coefs" in attributes:
        estimator._best_parameters = packed(attributes["_best_coefs"], attributes["_best_intercepts"])
    theirs = attributes.get("_optimizer")
    if theirs is None:
        return
    steps = SolverSteps(estimator)
    layers = len(estimator.coefs_)
    if isinstance(steps.optimizer, Adam):
        pairs = (("m", theirs.ms), ("v", theirs.vs))
        moments = {name: packed(arrays[:layers], arrays[layers:]) for name, arrays in pairs}
        steps.restore(theirs.t, steps.optimizer.learning_rate, moments)
    else:
        velocity = packed(theirs.velocities[:layers], theirs.velocities[layers:])
        steps.restore(0, theirs.learning_rate, {"velocity": velocity})
    estimator._optimizer = steps


def _fitted(estimator: Any) -> dict[str, Any]:
    """Public fitted attributes, and the private ones that both classes have."""
    public = {n: v for n, v in vars(estimator).items() if n.endswith("_") and not n.startswith("_") and n not in _OWN}
    private = {name: getattr(estimator, name) for name in _PRIVATE if hasattr(estimator, name)}
    lists = {n: list(v) for n, v in public.items() if isinstance(v, list)}
    return public | lists | private


def _copies(arrays: Sequence[Any]) -> list[np.ndarray]:
    return [np.array(x) for x in arrays]


def _unpacked(flat: np.ndarray, shapes: Sequence[tuple[int, int]]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The inverse of `packed`: copies of the weights and of the biases."""
    weights, biases, at = [], [], 0
    for n_in, n_out in shapes:
        weights.append(flat[at : at + n_in * n_out].reshape(n_in, n_out).copy())
        at += n_in * n_out
        biases.append(flat[at : at + n_out].copy())
        at += n_out
    return weights, biases


def _their_optimizer(estimator: Any, other: Any, shapes: Sequence[tuple[int, int]]) -> Any:
    """scikit-learn's optimizer with the moments of ours."""
    from sklearn.neural_network._stochastic_optimizers import AdamOptimizer, SGDOptimizer

    steps: SolverSteps = estimator._optimizer
    t, rate, moments = steps.saved()
    e, params = estimator, [*other.coefs_, *other.intercepts_]
    lists = {name: [x for part in _unpacked(flat, shapes) for x in part] for name, flat in moments.items()}
    if isinstance(steps.optimizer, Adam):
        adam = AdamOptimizer(params, e.learning_rate_init, e.beta_1, e.beta_2, e.epsilon)
        adam.t, adam.learning_rate = t, steps.learning_rate
        adam.ms, adam.vs = lists.get("m", adam.ms), lists.get("v", adam.vs)
        return adam
    sgd = SGDOptimizer(params, e.learning_rate_init, e.learning_rate, e.momentum, e.nesterovs_momentum, e.power_t)
    sgd.learning_rate, sgd.velocities = rate, lists.get("velocity", sgd.velocities)
    return sgd
