"""Scores of predictions, added up block by block: the samples may be more than memory holds."""

from __future__ import annotations

import numpy as np

from fusedmlp.data.coded import Target
from fusedmlp.data.targets import ClassEncoder, TargetEncoder
from fusedmlp.model.losses import loss_named


class Scores:
    """The scores of a network, by all blocks of samples so far.

    Parameters
    ----------
    loss : str
    encoder : ClassEncoder or NumberEncoder
    """

    def __init__(self, loss: str, encoder: TargetEncoder) -> None:
        self._loss, self._encoder = loss_named(loss), encoder
        self._m, self._J = 0, 0.0
        self._right = 0
        n = encoder.n_outputs
        self._residual, self._mean, self._spread = np.zeros(n), np.zeros(n), np.zeros(n)

    def add(self, J: float, A: np.ndarray, target: Target) -> None:
        """Take a block into account.

        Parameters
        ----------
        J : float
            Its loss.
        A : array of shape (n_outputs, m)
            The outputs of the network.
        target : array of shape (m,) or (m, n_outputs)
            As it was read.
        """
        m = len(target)
        if self._loss.reduction == "sum":
            self._J += J
        else:
            self._J += (J - self._J) * (m / (self._m + m))
        if isinstance(self._encoder, ClassEncoder):
            self._right += int((self._encoder.decode_indices(A) == self._encoder.indices(target)).sum())
        else:
            truth, predicted = self._encoder.columns(target), self._encoder.decode(A).reshape(m, -1)
            self._residual += np.square(truth - predicted).sum(axis=0)
            self._add_truth(truth)
        self._m += m

    def _add_truth(self, truth: np.ndarray) -> None:
        """The mean and the sum of squared deviations of two parts together (Chan, Golub and LeVeque, 1979)."""
        m, mean = len(truth), truth.mean(axis=0)
        shift, share = mean - self._mean, m / (self._m + m)
        self._spread += np.square(truth - mean).sum(axis=0) + np.square(shift) * (self._m * share)
        self._mean += shift * share

    def result(self) -> dict[str, float]:
        """As `Predictor.scores` gives them."""
        scores = {"loss": self._J}
        if self._loss.kind == "poisson":
            return scores | {"deviance": 2 * self._J / self._encoder.n_outputs}
        if isinstance(self._encoder, ClassEncoder):
            return scores | {"accuracy": self._right / self._m}
        if self._m > 1:
            constant = np.where(self._residual > 0, 0.0, 1.0)  # as scikit-learn has it
            varies = self._spread > 0
            r2 = np.where(varies, 1 - self._residual / np.where(varies, self._spread, 1), constant)
            scores["r2"] = float(r2.mean())
        return scores | {"rmse": float(np.sqrt(self._residual / self._m).mean())}
