"""The steps of ``fusedmlp train``: read, split and encode the data, train on each backend, score, draw."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from fusedmlp.backends.selection import get_backend, instance_of, registry, unavailable_reason
from fusedmlp.checkpoints import Checkpoint
from fusedmlp.cli.curves import Curves
from fusedmlp.cli.plots import plot_curves, save_figure
from fusedmlp.cli.ranks import rank
from fusedmlp.cli.settings import Settings
from fusedmlp.cli.splits import held_out_rows
from fusedmlp.cli.watch import MetricsWriter, ProgressBar, kept_until_done, progress_display
from fusedmlp.data.coded import Target
from fusedmlp.data.features import FeatureEncoder
from fusedmlp.data.large.encoding import class_numbers, encoded_features, encoded_target, row_numbers
from fusedmlp.data.large.reading import read_large_table
from fusedmlp.data.large.scratch import Scratch
from fusedmlp.data.predictor import Predictor
from fusedmlp.data.reading import is_frame_data, read_table
from fusedmlp.data.table import Table
from fusedmlp.data.targets import ClassEncoder, TargetEncoder, fit_target, rows_of
from fusedmlp.distributed.launched import communicator
from fusedmlp.training.callbacks import Callback
from fusedmlp.training.history import History
from fusedmlp.training.progress import ProgressLines


class Encoded(NamedTuple):
    """Rows as samples.

    Attributes
    ----------
    X : array of shape (n1, m)
    Y : array of shape (nL, m)
    target : array of shape (m,) or (m, n_outputs), or CodedColumn
        As it was read.
    """

    X: np.ndarray
    Y: np.ndarray
    target: Target


@dataclass(frozen=True)
class Prepared:
    """Encoded data, ready for any backend.

    Attributes
    ----------
    table : Table
    features : FeatureEncoder
    encoder : ClassEncoder or NumberEncoder
    loss : str
    train : Encoded
    held_out : Encoded or None
    """

    table: Table
    features: FeatureEncoder
    encoder: TargetEncoder
    loss: str
    train: Encoded
    held_out: Encoded | None

    @property
    def n_train(self) -> int:
        """Number of rows to train on, validation rows included."""
        return len(self.train.target)

    @property
    def n_test(self) -> int:
        """Number of held-out rows."""
        return 0 if self.held_out is None else len(self.held_out.target)


@dataclass(frozen=True)
class Result:
    """The outcome of a training on one backend.

    Attributes
    ----------
    backend : str
    engine : {"composed", "fused"}
    precision : {"strict", "high", "medium"}
        The one that was asked for.
    history : History
    predictor : Predictor
    training_loss : float
        J of the training rows with the final weights, without L2.
    scores : dict
        `Predictor.scores` of the held-out rows; empty if there are none.
    curves : Curves or None
        What was measured for a picture.
    """

    backend: str
    engine: str
    precision: str
    history: History
    predictor: Predictor
    training_loss: float
    scores: dict[str, float]
    curves: Curves | None = None


def choose_backends(settings: Settings) -> tuple[str, list[str], dict[str, str]]:
    """Return (the backend whose model is saved, the backends to train on, the reasons why the others cannot run)."""
    chosen = get_backend(settings.backend).name
    if not settings.all_backends:
        return chosen, [chosen], {}
    reasons = {name: unavailable_reason(name) for name in registry()}
    return (
        chosen,
        [name for name, reason in reasons.items() if reason is None],
        {name: reason for name, reason in reasons.items() if reason is not None},
    )


def read_data(settings: Settings) -> Table:
    """The table, read as the settings say."""
    return read_table(
        settings.data,
        settings.target,
        drop=settings.drop,
        numeric=settings.numeric,
        categorical=settings.categorical,
        decimal=settings.decimal,
        missing=settings.missing,
        day_first=settings.day_first,
        require_every_target=settings.require_target,
    )


def prepare(settings: Settings, table: Table | None = None, scratch: Scratch | None = None) -> Prepared:
    """Read the data unless given, split them, fit the preprocessing on the training rows and encode both parts.

    Parameters
    ----------
    settings : Settings
    table : Table, optional
    scratch : Scratch, optional
        Where the encoded rows are kept, if they may be more than memory holds.
    """
    table = read_data(settings) if table is None else table
    target = table.require_target()
    encoder, loss = fit_target(target, settings.loss, table.classification)
    test_table, train_rows, test_rows = None, None, None
    if settings.test_data is not None:
        test_table = read_test_data(settings, table, scratch)
    elif table.held_out is not None and settings.test_fraction_is_default:
        test_table = table.held_out
    elif settings.test_fraction > 0:
        classes = class_numbers(encoder, target) if isinstance(encoder, ClassEncoder) else None
        held_out = held_out_rows(len(table), settings.test_fraction, classes, settings.random_state)
        train_rows = row_numbers(~held_out, scratch, "train-rows")
        test_rows = row_numbers(held_out, scratch, "test-rows")
        encoder, loss = fit_target(target, loss, table.classification, train_rows)
        test_table = table
    features = FeatureEncoder.fit(table, train_rows, settings.standardize)

    def encoded(part: Table, rows: np.ndarray | None, name: str) -> Encoded:
        Y = encoded_target(encoder, part.require_target(), rows, settings.dtype, scratch, f"{name}-targets")
        X = encoded_features(features, part, rows, settings.dtype, scratch, f"{name}-inputs")
        return Encoded(X, Y, part.require_target() if rows is None else rows_of(part.require_target(), rows))

    # The held-out rows first: a class that does not occur in training is an error before the long work.
    held = None if test_table is None else encoded(test_table, test_rows, "test")
    return Prepared(table, features, encoder, loss, encoded(table, train_rows, "train"), held)


def read_test_data(settings: Settings, table: Table, scratch: Scratch | None) -> Table:
    """The rows to hold out, in a data set of their own, with the columns of the others."""
    assert settings.test_data is not None
    if scratch is None or not is_frame_data(Path(settings.test_data)):
        return read_table(settings.test_data, settings.test_target, schema=table.schema)
    path = Path(settings.test_data)
    test_table = read_large_table(path, settings.test_target, scratch, name="test-table", schema=table.schema)
    return test_table.aligned(table.schema)


def train_on(backend: str, settings: Settings, data: Prepared, callbacks: Sequence[Callback]) -> Result:
    """Train on one backend. Initial weights and the order of the samples are the same on every backend."""
    sizes = data.features.n_outputs, data.encoder.n_outputs
    network = settings.make_network(*sizes, data.loss, instance_of(backend))
    predictor = Predictor(network, data.features, data.encoder)
    X, Y, held_out = data.train.X, data.train.Y, data.held_out
    curves = None if settings.plot is None else Curves(predictor, X, Y, held_out and (held_out.X, held_out.target))
    validation_data = None
    if held_out is not None and not settings.validation_share and not settings.early_stopping:
        validation_data = (held_out.X, held_out.Y)
    history = network.fit(
        X,
        Y,
        **settings.fitting(data.encoder),
        checkpoint=None if settings.checkpoint is None else checkpoint_of(settings, predictor),
        validation_data=validation_data,
        callbacks=[*callbacks, *([] if curves is None else [curves])],
        comm=communicator(),
    )
    scores = {} if held_out is None else predictor.scores(held_out.X, held_out.target)
    training_loss = network.loss(X, Y)
    return Result(backend, network.engine.kind, network.precision, history, predictor, training_loss, scores, curves)


def checkpoint_of(settings: Settings, predictor: Predictor) -> Checkpoint:
    """Where the training is written down, with the command and the preprocessing."""
    assert settings.checkpoint is not None
    (feature_arrays, features), (target_arrays, target) = predictor.features.state(), predictor.target.state()
    preprocessing = {"features": features, "target": target, "arrays": feature_arrays | target_arrays}
    extra = {"command": settings.to_dict(), "preprocessing": preprocessing}
    return Checkpoint(settings.checkpoint, settings.checkpoint_every, extra)


def train_all(settings: Settings, data: Prepared, backends: Sequence[str]) -> list[Result]:
    """Train on every backend, with a progress bar on a terminal, and write the metrics file if one was asked for."""
    second_loss = "validation" if settings.validation_share else "held-out"
    results = []
    with ExitStack() as stack:
        metrics: IO[str] | None = None
        if settings.metrics is not None:
            metrics = stack.enter_context(kept_until_done(settings.metrics))
        progress = stack.enter_context(progress_display()) if rank() == 0 else None
        for backend in backends:
            callbacks: list[Callback] = []
            if progress is not None:
                callbacks.append(ProgressBar(progress, backend, second_loss))
            elif rank() == 0:
                callbacks.append(ProgressLines(backend, second_loss))
            if metrics is not None:
                callbacks.append(MetricsWriter(metrics, backend))
            results.append(train_on(backend, settings, data, callbacks))
    return results


def draw(settings: Settings, data: Prepared, results: Sequence[Result]) -> None:
    """Write the picture of the training to ``settings.plot``."""
    layers = "-".join(map(str, results[0].predictor.network.architecture.layer_sizes))
    curves = {result.backend: result.curves for result in results if result.curves is not None}
    save_figure(plot_curves(curves, f"{Path(data.table.source).name}, {layers}", data.loss), settings.plot or "")
