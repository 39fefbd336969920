"""Rows: samples as the estimators have them, a row each, dense or sparse, passed through a network's engine.

A dense table is used where it is: the engine takes its transposed view. A sparse one is never made dense as a whole.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from fusedmlp.engines.checked import outputs_of
from fusedmlp.engines.samples import Samples, as_samples
from fusedmlp.model.parameters import Gradients
from fusedmlp.network import Network


class Rows:
    """Samples with targets and weights, for passes through one network.

    Parameters
    ----------
    samples : Samples

    Attributes
    ----------
    samples : Samples
    m : int
        The number of samples.
    weight_sum : float
        Σ wᵢ; the number of samples where there are no weights.
    """

    def __init__(self, samples: Samples) -> None:
        self.samples = samples
        self.m, self.weight_sum = samples.m, samples.weight_sum

    def take(self, rows: np.ndarray) -> Rows:
        """Some of the samples."""
        return Rows(self.samples.take(rows, 0))

    def prepared(self, network: Network) -> Rows:
        """These rows in the form in which a training reads them fastest."""
        return Rows(self.samples.prepared(network.engine))

    def outputs(self, network: Network) -> np.ndarray:
        """A_{L-1} of all samples, where none were taken: shape (m, nL), in host memory."""
        return _in_rows(network, network.engine.forward(network.parameters, self.samples.X))

    def loss(self, network: Network) -> float:
        """Σ wᵢ jᵢ / Σ wᵢ, without an L2 term."""
        return self.samples.loss(network.engine, network.parameters)

    def loss_and_gradients(self, network: Network, gradients: Gradients) -> float:
        """Σ wᵢ jᵢ / Σ wᵢ, and its gradient in `gradients`; without an L2 term."""
        s = self.samples
        return network.engine.loss_and_gradients(network.parameters, s.X, s.Y, gradients, s.sample_weight)


def as_rows(X: Any, Y: np.ndarray, sample_weight: np.ndarray | None, network: Network) -> Rows:
    """Samples for a network.

    Parameters
    ----------
    X : array or CSR or CSC matrix of shape (m, n1)
        Checked by scikit-learn.
    Y : array of shape (m, nL)
    sample_weight : array of shape (m,), optional
    network : Network

    Raises
    ------
    ValueError
        A target is not one of the loss, or a weight is negative.
    """
    return Rows(as_samples(X.T, Y.T, sample_weight, network.architecture, network.backend))


def outputs(network: Network, X: Any) -> np.ndarray:
    """A_{L-1} of the rows of X, dense or sparse: shape (m, nL), in host memory."""
    return _in_rows(network, outputs_of(X.T, network.engine, network.parameters))


def outputs_if_finite(network: Network, X: np.ndarray) -> np.ndarray | None:
    """`outputs` of an array of the network's type, with as many columns as inputs; None where it is not finite."""
    A = network.engine.forward_if_finite(network.parameters, X.T)
    return None if A is None else _in_rows(network, A)


def _in_rows(network: Network, A: Any) -> np.ndarray:
    return np.ascontiguousarray(network.backend.to_numpy(A).T)


def dense_targets(Y: Any) -> np.ndarray:
    """Y as an array: scikit-learn passes sparse indicator matrices on as they are."""
    return np.asarray(Y.toarray() if sparse.issparse(Y) else Y)
