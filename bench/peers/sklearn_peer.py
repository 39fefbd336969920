"""scikit-learn's MLPClassifier."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
from sklearn.neural_network import MLPClassifier

from bench.peers.cases import ADAM
from bench.peers.peer import Bound, Latest, Peer, named_epoch, named_step
from bench.peers.problem import ORDER_SEED, Problem


class Sklearn(Peer):
    """The methods that its training calls after checking the input: `_backprop` and `_fit_stochastic`.

    `partial_fit` needs a millisecond and more for the checks in each call; a longer `fit` checks once. Its BLAS and
    OpenMP take their number of threads from the environment.
    """

    distributions = ("scikit-learn", "numpy")

    def bind(self, problem: Problem) -> Bound:
        case = problem.case
        labels = problem.Y.argmax(axis=1) if case.layer_sizes[-1] > 1 else problem.Y[:, 0].astype(int)
        classifier = self._started(problem, labels)
        if case.task == "forward":
            A = Latest(lambda: classifier.predict_proba(problem.X))
            return Bound(A, lambda: {"A": A.value if case.layer_sizes[-1] > 1 else A.value[:, 1:]})
        if case.task == "step":
            return self._step(problem, classifier)
        return self._epoch(problem, classifier)

    def _started(self, problem: Problem, labels: np.ndarray) -> MLPClassifier:
        """A classifier that has seen the classes, with the problem's weights and a new optimizer."""
        case = problem.case
        classifier = MLPClassifier(
            case.layer_sizes[1:-1],
            activation={"sigmoid": "logistic"}.get(case.hidden_activation, case.hidden_activation),
            alpha=0.0,
            batch_size=case.batch_size or min(200, case.m),
            learning_rate_init=ADAM.learning_rate,
            beta_1=ADAM.beta_1,
            beta_2=ADAM.beta_2,
            epsilon=ADAM.epsilon,
            random_state=ORDER_SEED,  # partial_fit draws its order from this anew: the same every time
        )
        classes, first = np.unique(labels, return_index=True)
        classifier.set_params(batch_size=len(first))
        classifier.partial_fit(problem.X[first], labels[first], classes=classes)
        classifier.set_params(batch_size=case.batch_size or min(200, case.m))
        del classifier._optimizer  # so that the next call makes one for these weights, with no moments
        classifier.coefs_, classifier.intercepts_ = problem.layers()[::2], problem.layers()[1::2]
        return classifier

    def _step(self, problem: Problem, classifier: Any) -> Bound:
        layers = problem.layers()
        depth = len(layers) // 2
        gradients = [np.empty_like(x) for x in layers[::2]], [np.empty_like(x) for x in layers[1::2]]
        weights = _no_weights(classifier._backprop)

        def step() -> Any:
            activations = [problem.X, *[None] * depth]
            return classifier._backprop(problem.X, problem.Y, *weights, activations, [None] * depth, *gradients)

        latest = Latest(step)

        def result() -> dict[str, np.ndarray]:
            J, dW, db = latest.value
            return named_step(problem.case, np.float32(J), [g for pair in zip(dW, db, strict=True) for g in pair])

        return Bound(latest, result)

    def _epoch(self, problem: Problem, classifier: Any) -> Bound:
        layers, sizes = problem.layers(), list(problem.case.layer_sizes)
        depth = len(layers) // 2
        activations, deltas = [problem.X, *[None] * depth], [None] * depth
        gradients = [np.empty_like(x) for x in layers[::2]], [np.empty_like(x) for x in layers[1::2]]
        Y = problem.Y.astype(bool)  # as `fit` passes them
        weights = _no_weights(classifier._fit_stochastic)

        def epoch() -> None:
            classifier._random_state = np.random.RandomState(ORDER_SEED)
            arguments = (*weights, activations, deltas, *gradients, sizes)
            classifier._fit_stochastic(problem.X, Y, *arguments, incremental=True)

        return Bound(epoch, lambda: named_epoch(problem, np.float32(classifier.loss_), _layers(classifier)))


def _no_weights(method: Any) -> tuple[None, ...]:
    """The argument that scikit-learn 1.7 put before the others."""
    return (None,) if "sample_weight" in inspect.signature(method).parameters else ()


def _layers(classifier: Any) -> list[np.ndarray]:
    return [x for pair in zip(classifier.coefs_, classifier.intercepts_, strict=True) for x in pair]
