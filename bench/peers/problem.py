"""The numbers of a case. Every library, in its own process, is given the same bits."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from sklearn.utils import shuffle

from bench.peers.cases import BCE, SOFTMAX, Case
from fusedmlp.model.parameters import glorot_uniform

ORDER_SEED = 5
"""scikit-learn draws the order of an epoch's samples from a seed. Every other library is given the same order."""
USED_INPUTS = 8
"""The labels depend on at most this many inputs."""
LABELS = (BCE, "sum_squared_error")
"""Losses whose targets are 0 and 1."""
ELEMENTS_AT_ONCE = 2**22
"""Elements of X that are made at a time: temporary arrays stay small."""


class Problem(NamedTuple):
    """Data and initial parameters of a case, of its dtype: rows as samples, as the other libraries take them.

    Attributes
    ----------
    case : Case
    X : array of shape (m, n1), C order
    Y : array of shape (m, nL), C order
    flat : array of shape (n_parameters,)
        The initial weights and biases, as in `fusedmlp.Parameters`.
    order : array of shape (m,)
        The order of an epoch's samples.
    """

    case: Case
    X: np.ndarray
    Y: np.ndarray
    flat: np.ndarray
    order: np.ndarray

    def layers(self) -> list[np.ndarray]:
        """Copies of W1 (n1, n2), b1 (n2,), W2, ... in this order."""
        arrays, at = [], 0
        for n_in, n_out in self.case.architecture.weight_shapes:
            for shape in ((n_in, n_out), (n_out,)):
                arrays.append(self.flat[at : at + int(np.prod(shape))].reshape(shape).copy())
                at += arrays[-1].size
        return arrays

    def batches(self) -> list[np.ndarray]:
        """The samples of every batch of an epoch."""
        assert self.case.batch_size is not None
        return np.split(self.order, range(self.case.batch_size, self.case.m, self.case.batch_size))


def draw(case: Case, xp: Any) -> Problem:
    """Make the numbers of a case in arrays of `xp`; `flat` and `order` are numpy arrays.

    X is uniform with mean 0 and variance 1, from a hash of each element's index. Labels follow a linear rule with
    noise: with random labels every gradient would be a sum that cancels to nearly nothing, and its relative error would
    be a matter of luck.
    """
    n1, n3, m = case.layer_sizes[0], case.layer_sizes[-1], case.m
    X, Y = xp.empty((m, n1), case.dtype), xp.zeros((m, n3), case.dtype)
    rng, used = np.random.default_rng(2), min(n1, USED_INPUTS)
    rule = (rng.choice((-1.0, 1.0), (n3, used)) * rng.uniform(0.5, 1.5, (n3, used))).astype(np.float32)
    rows = max(1, ELEMENTS_AT_ONCE // n1)
    for start in range(0, m, rows):
        stop = min(m, start + rows)
        X[start:stop] = x = _uniform(xp, start * n1, stop * n1, 1).reshape(stop - start, n1)
        scores = []
        for output in range(n3):
            score = _uniform(xp, start, stop, 3 + output)
            for feature in range(used):  # in a fixed order: the same bits on every device
                score = score + x[:, feature] * rule[output, feature]
            scores.append(score)
        if case.loss == SOFTMAX:
            Y[xp.arange(start, stop), xp.stack(scores).argmax(axis=0)] = 1
        else:
            Y[start:stop] = _targets(xp, case.loss, xp.stack(scores, axis=1))
    flat = glorot_uniform(case.architecture, np.random.default_rng(1))
    if case.task == "step" and case.hidden_activation == "relu":
        _leave_the_kink(xp, case, X, Y, flat)
    order = shuffle(np.arange(m), random_state=ORDER_SEED) if case.task == "epoch" else np.empty(0, np.int64)
    return Problem(case, X, Y, flat, order)


def _targets(xp: Any, loss: str, scores: Any) -> Any:
    """Targets of a loss other than the softmax's: labels, counts or numbers."""
    if loss in LABELS:
        return scores > np.float32(0.3)
    return xp.floor(xp.abs(scores)) if loss == "poisson" else scores * np.float32(0.3)


def _uniform(xp: Any, start: int, stop: int, seed: int) -> Any:
    """Numbers of variance 1 on (-√3, √3), float32, from a hash (Chris Wellons's "lowbias32") of start ... stop - 1."""
    h = xp.arange(start, stop, dtype=np.uint32) + np.uint32(seed * 0x9E3779B9 % 2**32)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        h ^= h >> np.uint32(shift)
        h *= np.uint32(factor)
    h ^= h >> np.uint32(16)
    unit = (h >> np.uint32(8)).astype(np.float32) * np.float32(2**-24)
    return (unit - np.float32(0.5)) * np.float32(12**0.5)


KINK = 2e-5
"""No Z of a relu step is nearer to 0 than this, which is several times the rounding error of float32."""


def _leave_the_kink(xp: Any, case: Case, X: Any, Y: Any, flat: np.ndarray) -> None:
    """Replace the samples where some Z is so near to 0 that rounding decides its sign, by copies of others.

    relu has no derivative at 0. One Z of the other sign would change the gradient by far more than rounding does.
    """
    layers = [xp.asarray(x, np.float64) for x in Problem(case, X, Y, flat, X[:0, 0]).layers()]
    rows = max(1, (2**19 if xp is np else 2**26) // sum(case.layer_sizes))
    for start in range(0, case.m, rows):
        A, near = X[start : start + rows].astype(np.float64), xp.zeros(min(rows, case.m - start), bool)
        for layer in range(0, len(layers) - 2, 2):
            Z = A @ layers[layer] + layers[layer + 1]
            near |= (xp.abs(Z) < KINK).any(axis=1)
            A = xp.maximum(Z, 0)
        near, clear = xp.flatnonzero(near), xp.flatnonzero(~near)
        for table in (X, Y):
            part = table[start : start + rows]
            part[near] = part[clear[xp.arange(near.size) % clear.size]]
