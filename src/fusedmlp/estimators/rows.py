"""Rows: samples as the estimators have them, a row each, dense or sparse, passed through a network's engine.

A dense table is used where it is: the engine takes its transposed view. A sparse one is made dense some rows at a
time, whole batches of them, so that its dense form never exists as a whole.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy import sparse

from fusedmlp.engines.chunking import slices
from fusedmlp.engines.options import EpochOptions
from fusedmlp.engines.samples import Samples, as_inputs, as_samples
from fusedmlp.model.optimizers import OptimizerState
from fusedmlp.model.parameters import Gradients
from fusedmlp.network import Network


class Rows(ABC):
    """Samples with targets and weights, for passes through one network.

    Attributes
    ----------
    m : int
        The number of samples.
    weight_sum : float
        Σ wᵢ; the number of samples where there are no weights.
    """

    m: int
    weight_sum: float

    @abstractmethod
    def take(self, rows: np.ndarray) -> Rows:
        """Some of the samples."""

    @abstractmethod
    def train_epoch(
        self, network: Network, state: OptimizerState, order: np.ndarray | None, batch_size: int, options: EpochOptions
    ) -> float:
        """`Engine.train_epoch` over these samples."""

    @abstractmethod
    def loss(self, network: Network) -> float:
        """Σ wᵢ jᵢ / Σ wᵢ, without an L2 term."""

    @abstractmethod
    def loss_and_gradients(self, network: Network, gradients: Gradients) -> float:
        """Σ wᵢ jᵢ / Σ wᵢ, and its gradient in `gradients`; without an L2 term."""


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
    if sparse.issparse(X):
        return SparseRows(X.tocsr(), Y, sample_weight)
    return DenseRows(as_samples(X.T, Y.T, sample_weight, network.architecture, network.backend))


class DenseRows(Rows):
    """Rows of a dense table, which may also be a part of it."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples
        self.m, self.weight_sum = samples.m, samples.weight_sum

    def take(self, rows: np.ndarray) -> DenseRows:
        return DenseRows(self._samples.take(rows, 0))

    def train_epoch(
        self, network: Network, state: OptimizerState, order: np.ndarray | None, batch_size: int, options: EpochOptions
    ) -> float:
        s = self._samples
        return network.engine.train_epoch(
            network.parameters, state, s.X, s.Y, s.sample_weight, s.ordered(order), batch_size, options
        )

    def loss(self, network: Network) -> float:
        s = self._samples
        return network.engine.loss(network.parameters, s.X, s.Y, s.sample_weight, order=s.order)

    def loss_and_gradients(self, network: Network, gradients: Gradients) -> float:
        s = self._samples
        return network.engine.loss_and_gradients(network.parameters, s.X, s.Y, gradients, s.sample_weight)


class SparseRows(Rows):
    """Rows of a CSR matrix, made dense as many at a time as fit the backend's workspace."""

    def __init__(self, X: Any, Y: np.ndarray, sample_weight: np.ndarray | None) -> None:
        self._X, self._Y, self._sample_weight = X, Y, sample_weight
        self.m = X.shape[0]
        self.weight_sum = float(self.m if sample_weight is None else sample_weight.sum(dtype=np.float64))

    def take(self, rows: np.ndarray) -> SparseRows:
        weight = None if self._sample_weight is None else self._sample_weight[rows]
        return SparseRows(self._X[rows], self._Y[rows], weight)

    def train_epoch(
        self, network: Network, state: OptimizerState, order: np.ndarray | None, batch_size: int, options: EpochOptions
    ) -> float:
        total = 0.0
        for rows in self._parts(network, batch_size):
            samples = self._dense(network, rows if order is None else order[rows])
            arguments = samples.X, samples.Y, samples.sample_weight, None, batch_size, options
            loss = network.engine.train_epoch(network.parameters, state, *arguments)
            total += loss * (samples.m / self.m)
        return total

    def loss(self, network: Network) -> float:
        total = 0.0
        for rows in self._parts(network):
            s = self._dense(network, rows)
            J = network.engine.loss(network.parameters, s.X, s.Y, s.sample_weight)
            total += J * (s.weight_sum / self.weight_sum)
        return total

    def loss_and_gradients(self, network: Network, gradients: Gradients) -> float:
        total = 0.0
        summed = np.zeros(network.architecture.n_parameters)
        for rows in self._parts(network):
            s = self._dense(network, rows)
            J = network.engine.loss_and_gradients(network.parameters, s.X, s.Y, gradients, s.sample_weight)
            share = s.weight_sum / self.weight_sum
            summed += share * network.backend.to_numpy(gradients.flat)
            total += share * J
        gradients.flat[...] = network.backend.asarray(summed, gradients.flat.dtype)
        return total

    def _parts(self, network: Network, batch_size: int = 1) -> Iterator[slice]:
        return slices(0, self.m, dense_rows(network, batch_size))

    def _dense(self, network: Network, rows: Any) -> Samples:
        weight = None if self._sample_weight is None else self._sample_weight[rows]
        X, Y = self._X[rows].toarray(), self._Y[rows]
        if weight is not None and not weight.any():  # weights of a part may all be 0, those of a training may not
            dtype = network.architecture.dtype
            arrays = [network.backend.asarray(x, dtype) for x in (X.T, Y.T, weight[None])]
            return Samples(arrays[0], arrays[1], arrays[2])
        return as_samples(X.T, Y.T, weight, network.architecture, network.backend)


def dense_rows(network: Network, batch_size: int = 1) -> int:
    """Rows of a sparse X that are made dense at a time: whole batches, one at least."""
    row_bytes = network.architecture.n_inputs * network.architecture.itemsize
    return max(1, network.backend.workspace_bytes // (row_bytes * batch_size)) * batch_size


def outputs(network: Network, X: Any, checked: bool = False) -> np.ndarray:
    """A_{L-1} of the rows of X, dense or sparse: shape (m, nL), in host memory.

    `checked` says that X is an array of the network's type in host memory, finite, with as many columns as inputs.
    """
    if checked:
        return np.ascontiguousarray(network.engine.forward(network.parameters, X.T).T)
    if not sparse.issparse(X):
        return _forward(network, X)
    X = X.tocsr()
    parts = [_forward(network, X[rows].toarray()) for rows in slices(0, X.shape[0], dense_rows(network))]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _forward(network: Network, X: np.ndarray) -> np.ndarray:
    inputs = as_inputs(X.T, network.architecture, network.backend)
    return np.ascontiguousarray(network.backend.to_numpy(network.engine.forward(network.parameters, inputs)).T)
