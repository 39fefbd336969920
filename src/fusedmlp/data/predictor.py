"""Predictor: a network together with the preprocessing of its inputs and the decoding of its outputs, in one file.

The network takes columns of standardised numbers. A `Predictor` takes tables with a row per sample and returns class
names, or numbers in their original units.
"""

from __future__ import annotations

import logging
import os
from typing import Any

import numpy as np

from fusedmlp.backends.base import Backend
from fusedmlp.data.features import FeatureEncoder
from fusedmlp.data.messages import counted
from fusedmlp.data.table import Table
from fusedmlp.data.targets import CLASS_LOSSES, ClassEncoder, TargetEncoder, target_from_state
from fusedmlp.errors import ModelFileError
from fusedmlp.files.model_files import ModelFile, load_model, save_model
from fusedmlp.model.architecture import Architecture
from fusedmlp.model.parameters import Parameters
from fusedmlp.network import Network

_BLOCK_BYTES = 64 * 2**20

_log = logging.getLogger("fusedmlp")


class Predictor:
    """A trained network with its preprocessing.

    Parameters
    ----------
    network : Network
    features : FeatureEncoder
        ``features.n_outputs`` is n1 of the network.
    target : ClassEncoder or NumberEncoder
        ``target.n_outputs`` is nL of the network.

    Raises
    ------
    ValueError
        The numbers of inputs or outputs differ.
    """

    def __init__(self, network: Network, features: FeatureEncoder, target: TargetEncoder) -> None:
        _check_fit(network.architecture, features, target)
        self.network = network
        self.features = features
        self.target = target

    @property
    def loss(self) -> str:
        """The name of the network's loss."""
        return self.network.architecture.loss

    @property
    def is_classifier(self) -> bool:
        """True if the network predicts classes, False if it predicts numbers."""
        return isinstance(self.target, ClassEncoder)

    def encode_features(self, table: Table, rows: np.ndarray | None = None) -> np.ndarray:
        """Return X (n1, m), the transpose of an array with a row per sample."""
        return self.features.transform(table, rows, self.network.architecture.dtype).T

    def predict(self, table: Table) -> np.ndarray:
        """Return class labels, shape (m,), text as objects; or numbers in original units, (m,) or (m, n_outputs)."""
        return self.target.decode(self._forward(table))

    def predict_proba(self, table: Table) -> np.ndarray:
        """Return the probability of each class, shape (m, number of classes), in the order of ``target.classes``.

        Raises
        ------
        ValueError
            The network predicts numbers, or its loss is not a cross-entropy.
        """
        return self.predict_with_proba(table)[1]

    def predict_with_proba(self, table: Table) -> tuple[np.ndarray, np.ndarray]:
        """Return the results of `predict` and of `predict_proba`, computed in one pass over the table.

        Raises
        ------
        ValueError
            As `predict_proba`.
        """
        if not isinstance(self.target, ClassEncoder) or self.loss not in CLASS_LOSSES:
            raise ValueError(
                f"predict_proba: expected a classifier trained with {' or '.join(CLASS_LOSSES)}; this model's loss is "
                f"{self.loss}" + ("" if self.is_classifier else ", and it predicts numbers")
            )
        A = self._forward(table)
        return self.target.decode(A), self.target.probabilities(A)

    def evaluate(self, table: Table) -> dict[str, float]:
        """Compare the predictions with the table's target; returns the dict of `scores`."""
        return self.scores(self.encode_features(table), table.require_target())

    def scores(self, X: np.ndarray, target: np.ndarray) -> dict[str, float]:
        """Score the network on encoded features and a target as it was read.

        Parameters
        ----------
        X : array of shape (n1, m)
        target : array of shape (m,) or (m, n_outputs)

        Returns
        -------
        dict
            "loss": without L2, and of the scaled target if numbers are scaled. For classes also "accuracy". For numbers
            also "r2" (from 2 rows on) and "rmse" in original units. For poisson also "deviance", the mean Poisson
            deviance per output.
        """
        Y = self.target.encode(target, self.network.architecture.dtype)
        scores = {"loss": self.network.loss(X, Y)}
        if self.loss == "poisson":
            return scores | {"deviance": 2 * scores["loss"] / self.target.n_outputs}
        A = self.network.forward(X)
        if isinstance(self.target, ClassEncoder):
            return scores | {"accuracy": float((self.target.decode_indices(A) == self.target.indices(target)).mean())}
        from sklearn.metrics import r2_score, root_mean_squared_error

        truth, predicted = self.target.columns(target), self.target.decode(A).reshape(len(target), -1)
        if len(truth) > 1:
            scores["r2"] = float(r2_score(truth, predicted))
        return scores | {"rmse": float(root_mean_squared_error(truth, predicted))}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to one safetensors file, atomically: an interrupted call leaves an older file unchanged.

        ``Network.load`` reads only the network from the same file.
        """
        feature_arrays, features = self.features.state()
        target_arrays, target = self.target.state()
        network = self.network
        parameters = Parameters(network.architecture, network.backend.to_numpy(network.parameters.flat))
        extra: dict[str, Any] = {"features": features, "target": target}
        save_model(path, ModelFile(parameters, feature_arrays | target_arrays, extra))

    @classmethod
    def load(cls, path: str | os.PathLike[str], backend: str | Backend | None = None) -> Predictor:
        """Read a file that `save` wrote. Nothing in the file is executed.

        Raises
        ------
        ModelFileError
            The file is missing, damaged, not a model file, or holds a network without preprocessing.
        ValueError, BackendUnavailableError
            As `fusedmlp.get_backend`.
        """
        return cls.from_model_file(load_model(path), path, backend)

    @classmethod
    def from_model_file(
        cls, model: ModelFile, path: str | os.PathLike[str], backend: str | Backend | None = None
    ) -> Predictor:
        """Make a predictor of what `load_model` read from `path`; errors as `load`."""
        if "features" not in model.extra or "target" not in model.extra:
            raise ModelFileError(
                f"{path}: a network without its preprocessing, as Network.save writes it; expected a file that "
                "fusedmlp train wrote (Network.load reads this one)"
            )
        try:
            features = FeatureEncoder.from_state(model.extra_tensors, model.extra["features"])
            target = target_from_state(model.extra_tensors, model.extra["target"])
            _check_fit(model.parameters.architecture, features, target)
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise ModelFileError(f"{path}: the preprocessing cannot be read: {error}") from None
        return cls(Network.from_parameters(model.parameters, backend=backend), features, target)

    def _forward(self, table: Table) -> np.ndarray:
        """Return the outputs (nL, m) in host memory. Rows pass in blocks: a table may be larger than memory."""
        for sentence in self.features.unseen(table):
            _log.warning("%s: %s", table.source, sentence)
        architecture = self.network.architecture
        A = np.empty((architecture.n_outputs, len(table)), dtype=architecture.dtype)
        step = max(1, _BLOCK_BYTES // (architecture.itemsize * architecture.n_inputs))
        for start in range(0, len(table), step):
            rows = np.arange(start, min(start + step, len(table)))
            A[:, rows] = self.network.forward(self.encode_features(table, rows))
        return A


def _check_fit(architecture: Architecture, features: FeatureEncoder, target: TargetEncoder) -> None:
    for name, got, expected in (
        ("features", features.n_outputs, architecture.n_inputs),
        ("target", target.n_outputs, architecture.n_outputs),
    ):
        if got != expected:
            layers = list(architecture.layer_sizes)
            raise ValueError(f"{name}: expected {counted(expected, 'column')} for the layers {layers}; got {got}")
