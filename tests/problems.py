"""Random networks with data that suits their loss, and the combinations of what a network can be."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

from fusedmlp.model.activations import HIDDEN_ACTIVATIONS
from fusedmlp.model.losses import LOSSES
from fusedmlp.network import Network

DEPTHS = (1, 2, 3, 4, 5)
"""Numbers of weight layers: 1 is logistic regression and its kin, 5 has four hidden layers."""
FLAGS = tuple(product((True, False), repeat=2))


COMBINATIONS = [
    (activation, loss, depth, *FLAGS[(number + place + depth) % len(FLAGS)])
    for number, activation in enumerate(HIDDEN_ACTIVATIONS)
    for place, loss in enumerate(LOSSES)
    for depth in (DEPTHS if place < 5 else DEPTHS[1::2])
]
"""Every activation with every loss at every depth; the losses with linear parts at two depths. Bias and weights change
from one to the next: each activation, each loss and each depth meets all four cases."""


@dataclass
class Problem:
    """A network and samples for it, columns as samples."""

    net: Network
    X: np.ndarray
    Y: np.ndarray
    sample_weight: np.ndarray | None


def targets(loss, n_outputs, m, rng):
    """Y (n_outputs, m), as the loss allows."""
    if loss == "categorical_cross_entropy":
        return np.eye(n_outputs)[rng.integers(n_outputs, size=m)].T
    if loss == "poisson":
        return rng.poisson(2.0, size=(n_outputs, m)).astype(float)
    if loss == "binary_cross_entropy":
        return rng.integers(0, 2, size=(n_outputs, m)).astype(float)
    return rng.normal(size=(n_outputs, m))


def make_problem(
    activation="sigmoid",
    loss="binary_cross_entropy",
    depth=2,
    bias=True,
    weighted=False,
    *,
    dtype="float64",
    backend="numpy",
    m=9,
    sizes=None,
    seed=0,
):
    """A problem drawn from the seed; layer sizes are small primes unless given."""
    rng = np.random.default_rng(seed)
    if sizes is None:
        sizes = [5, *[7, 3, 4, 6][: depth - 1], 3 if loss == "categorical_cross_entropy" else 2]
    net = Network(sizes, activation, loss, bias, dtype, backend, random_state=seed)
    X = rng.normal(size=(sizes[0], m)).astype(dtype)
    Y = targets(loss, sizes[-1], m, rng).astype(dtype)
    weight = rng.uniform(0.1, 2.0, size=m).astype(dtype) if weighted else None
    return Problem(net, X, Y, weight)
