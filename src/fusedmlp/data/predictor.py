"""Predictor: a network together with the preprocessing of its inputs and the decoding of its outputs, in one file.

The network takes columns of standardised numbers. A `Predictor` takes tables with a row per sample and returns class
names, or numbers in their original units.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fusedmlp.backends.base import Backend
from fusedmlp.checks import check_count
from fusedmlp.data import recipe
from fusedmlp.data.coded import Target
from fusedmlp.data.features import FeatureEncoder, Unseen
from fusedmlp.data.messages import counted
from fusedmlp.data.scoring import Scores
from fusedmlp.data.sources import as_table
from fusedmlp.data.table import Table
from fusedmlp.data.targets import CLASS_LOSSES, ClassEncoder, TargetEncoder, fit_target, rows_of, target_from_state
from fusedmlp.errors import ModelFileError
from fusedmlp.files.model_files import ModelFile, load_model, save_model
from fusedmlp.many import fit_many
from fusedmlp.model.architecture import Architecture
from fusedmlp.model.losses import loss_of_outputs
from fusedmlp.model.names import ActivationName, DtypeName
from fusedmlp.model.parameters import Parameters
from fusedmlp.network import Network
from fusedmlp.training.history import History

_BLOCK_BYTES = 64 * 2**20

_log = logging.getLogger("fusedmlp")


class Predictor:
    """A trained network with its preprocessing: it takes tables, and gives class names or numbers in their own units.

    `train` makes one of a table. Where a method takes `data`, that is a path, a frame of pandas or polars, an array
    with a row per sample, or a `Table`.

    Parameters
    ----------
    network : Network
    features : FeatureEncoder
        ``features.n_outputs`` is n1 of the network.
    target : ClassEncoder or NumberEncoder
        ``target.n_outputs`` is nL of the network.
    others : sequence of Network
        With these the network is an ensemble, whose outputs are averaged (Lakshminarayanan et al., 2017).

    Raises
    ------
    ValueError
        The numbers of inputs or outputs differ.
    """

    def __init__(
        self, network: Network, features: FeatureEncoder, target: TargetEncoder, others: Sequence[Network] = ()
    ) -> None:
        for member in (network, *others):
            _check_fit(member.architecture, features, target)
        self.network = network
        self.others = tuple(others)
        self.features = features
        self.target = target

    @classmethod
    def train(
        cls,
        data: Any,
        target: Any = None,
        *,
        hidden: Sequence[int] = (64,),
        activation: ActivationName = recipe.ACTIVATION,
        loss: str | None = None,
        standardize: bool = True,
        dtype: DtypeName = "float32",
        backend: str | Backend | None = None,
        random_state: int | None = 0,
        reading: Mapping[str, Any] | None = None,
        members: int = 1,
        **fitting: Any,
    ) -> Predictor:
        """Train on a table.

        Parameters
        ----------
        data : path, pandas.DataFrame, polars.DataFrame, array of shape (m, n) or Table
        target : str, or array of shape (m,) or (m, n_outputs)
            The column to predict, by default "target"; or the values themselves.
        hidden : sequence of int
            Units of the hidden layers.
        activation, dtype, backend, random_state
            As in `Network`.
        loss : str, optional
            By default what the target asks for: see `fusedmlp.data.fit_target`.
        standardize : bool
            Scale columns of numbers to mean 0 and standard deviation 1.
        reading : mapping, optional
            drop, numeric, categorical, decimal, missing and day_first, as in `fusedmlp.data.read_table`.
        members : int
            Networks with seeds of their own, `random_state`, `random_state` + 1, ..., whose outputs are averaged.
        **fitting
            As in `Network.fit`, with the defaults of the command line (`fusedmlp.data.recipe`).

        Returns
        -------
        Predictor
            ``predictor.network.history`` is the record of the training.

        Raises
        ------
        ValueError
            The data are no table, or an argument is wrong.

        Examples
        --------
        >>> predictor = Predictor.train("iris", epochs=20)
        >>> predictor.predict("iris")[:2].tolist()
        ['setosa', 'setosa']
        """
        table = as_table(data, target, **(reading or {}))
        encoder, chosen = fit_target(table.require_target(), loss, table.classification)
        features = FeatureEncoder.fit(table, None, standardize)
        sizes = [features.n_outputs, *hidden, encoder.n_outputs]
        network, *others = (
            Network(sizes, activation, chosen, True, dtype, backend, None if random_state is None else random_state + n)
            for n in range(check_count("members", members))
        )
        predictor = cls(network, features, encoder, others)
        for note in table.notes:
            _log.info("%s: %s", table.source, note)
        predictor._fit(table, fitting)
        return predictor

    def fit(self, data: Any, target: Any = None, **fitting: Any) -> History:
        """Go on training, on more rows of the same columns; the preprocessing stays as it is.

        Parameters
        ----------
        data, target
            As in `train`.
        **fitting
            As in `Network.fit`, with the defaults of `train`.

        Raises
        ------
        ValueError
            Columns are missing, a class is new, or an argument is wrong.
        """
        return self._fit(self._table(data, target, True), fitting)

    def _fit(self, table: Table, fitting: Mapping[str, Any]) -> History:
        Y = self.target.encode(table.require_target(), self.network.architecture.dtype)
        arguments = recipe.fitting(fitting, recipe.defaults_of(self.target))
        X = self.encode_features(table)
        if self.others:
            return fit_many(self.members, X, Y, **arguments)[0]
        return self.network.fit(X, Y, **arguments)

    def _table(self, data: Any, target: Any = None, target_required: bool = False) -> Table:
        schema = self.features.schema
        return as_table(data, target, schema=schema, target_required=target_required)

    def __repr__(self) -> str:
        sizes = "-".join(map(str, self.network.architecture.layer_sizes))
        n = self.target.n_outputs
        what = f"{len(self.target.classes)} classes" if isinstance(self.target, ClassEncoder) else counted(n, "number")
        sizes += f" x {len(self.members)}" if self.others else ""
        return f"Predictor({counted(len(self.features.schema.columns), 'column')} -> {sizes} -> {what}, {self.loss})"

    @property
    def members(self) -> tuple[Network, ...]:
        """The network, and the others of an ensemble."""
        return self.network, *self.others

    @property
    def feature_names_out(self) -> list[str]:
        """The names of the network's inputs, in their order."""
        return self.features.names_out

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

    def predict(self, data: Any) -> np.ndarray:
        """Return class labels, shape (m,), text as objects; or numbers in original units, (m,) or (m, n_outputs)."""
        return self.target.decode(self._forward(self._table(data)))

    def predict_proba(self, data: Any) -> np.ndarray:
        """Return the probability of each class, shape (m, number of classes), in the order of ``target.classes``.

        Raises
        ------
        ValueError
            The network predicts numbers, or its loss is not a cross-entropy.
        """
        return self.predict_with_proba(data)[1]

    def predict_with_proba(self, data: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return the results of `predict` and of `predict_proba`, computed in one pass over the table.

        Raises
        ------
        ValueError
            As `predict_proba`.
        """
        target = self.class_encoder()
        A = self._forward(self._table(data))
        return target.decode(A), target.probabilities(A)

    def class_encoder(self) -> ClassEncoder:
        """The encoder of the target of a network whose outputs are probabilities; a ValueError for any other."""
        if not isinstance(self.target, ClassEncoder) or self.loss not in CLASS_LOSSES:
            raise ValueError(
                f"predict_proba: expected a classifier trained with {' or '.join(CLASS_LOSSES)}; this model's loss is "
                f"{self.loss}" + ("" if self.is_classifier else ", and it predicts numbers")
            )
        return self.target

    def evaluate(self, data: Any, target: Any = None) -> dict[str, float]:
        """Compare the predictions with the target; returns the dict of `scores`.

        Parameters
        ----------
        data, target
            As in `train`; the target is by default where training had it.
        """
        return self.evaluate_pieces([self._table(data, target, True)])

    def evaluate_pieces(self, tables: Iterable[Table]) -> dict[str, float]:
        """As `evaluate`, of a table in pieces, with the columns of training."""
        scores = Scores(self.loss, self.target)
        for table in tables:
            self._add_scores(scores, self.encode_features(table), table.require_target())
        return scores.result()

    def scores(self, X: np.ndarray, target: Target) -> dict[str, float]:
        """Score the network on encoded features and a target as it was read, block by block.

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
        scores = Scores(self.loss, self.target)
        self._add_scores(scores, X, target)
        return scores.result()

    def _add_scores(self, scores: Scores, X: np.ndarray, target: Target) -> None:
        for block in self._blocks(X.shape[1]):
            part, A = rows_of(target, block), self._outputs(X[:, block])
            Y = self.target.encode(part, self.network.architecture.dtype)
            J = loss_of_outputs(self.loss, A, Y) if self.others else self.network.loss(X[:, block], Y)
            scores.add(J, A, part)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to one safetensors file, atomically: an interrupted call leaves an older file unchanged.

        ``Network.load`` reads only the network from the same file.
        """
        feature_arrays, features = self.features.state()
        target_arrays, target = self.target.state()
        network = self.network
        parameters = Parameters(network.architecture, network.backend.to_numpy(network.parameters.flat))
        extra: dict[str, Any] = {"features": features, "target": target}
        others = {
            f"member{number}": member.backend.to_numpy(member.parameters.flat)
            for number, member in enumerate(self.others, start=2)
        }
        for name, flat in others.items():
            if not np.isfinite(flat).all():
                raise ValueError(f"{name}: expected finite weights to save; they hold NaN or infinity")
        if others:
            extra["members"] = 1 + len(others)
        save_model(path, ModelFile(parameters, feature_arrays | target_arrays | others, extra))

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
            architecture = model.parameters.architecture
            _check_fit(architecture, features, target)
            others = [
                Network.from_parameters(_member(model, number), backend=backend)
                for number in range(2, 1 + int(model.extra.get("members", 1)))
            ]
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise ModelFileError(f"{path}: the preprocessing cannot be read: {error}") from None
        return cls(Network.from_parameters(model.parameters, backend=backend), features, target, others)

    def outputs(self, tables: Iterable[Table]) -> Iterator[np.ndarray]:
        """Give the outputs (nL, m) for each piece of a table; then warn of categories that did not occur in training.

        Parameters
        ----------
        tables : iterable of Table
            With the columns of training.
        """
        unseen: dict[str, Unseen] = {}
        source = ""
        for table in tables:
            source = table.source
            for name, found in self.features.unseen(table).items():
                unseen[name] = found + unseen[name] if name in unseen else found
            yield self._outputs_of(table)
        for name, found in unseen.items():
            _log.warning("%s: %s", source, found.sentence(name))

    def _forward(self, table: Table) -> np.ndarray:
        (A,) = self.outputs([table])
        return A

    def _outputs_of(self, table: Table) -> np.ndarray:
        """Return the outputs in host memory. Rows pass in blocks: a table may be memory-mapped."""
        architecture = self.network.architecture
        A = np.empty((architecture.n_outputs, len(table)), dtype=architecture.dtype)
        for block in self._blocks(len(table)):
            rows = np.arange(block.start, block.stop)
            A[:, rows] = self._outputs(self.encode_features(table, rows))
        return A

    def _blocks(self, m: int) -> Iterator[slice]:
        """Give m samples in blocks of `_BLOCK_BYTES` bytes of inputs."""
        architecture = self.network.architecture
        step = max(1, _BLOCK_BYTES // (architecture.itemsize * architecture.n_inputs))
        for start in range(0, m, step):
            yield slice(start, min(start + step, m))

    def _outputs(self, X: np.ndarray) -> np.ndarray:
        """The outputs of the network, or the mean of those of an ensemble."""
        A = self.network.forward(X)
        if not self.others:
            return A
        total = A.astype(np.float64)
        for member in self.others:
            total += member.forward(X)
        return (total / len(self.members)).astype(A.dtype)


def _member(model: ModelFile, number: int) -> Parameters:
    """The weights of a member of an ensemble, counted from 1; the first ones are the file's own."""
    flat = model.extra_tensors[f"member{number}"]
    if not np.isfinite(flat).all():
        raise ValueError(f"member {number}: expected finite weights")
    return Parameters(model.parameters.architecture, flat)


def _check_fit(architecture: Architecture, features: FeatureEncoder, target: TargetEncoder) -> None:
    for name, got, expected in (
        ("features", features.n_outputs, architecture.n_inputs),
        ("target", target.n_outputs, architecture.n_outputs),
    ):
        if got != expected:
            layers = list(architecture.layer_sizes)
            raise ValueError(f"{name}: expected {counted(expected, 'column')} for the layers {layers}; got {got}")
