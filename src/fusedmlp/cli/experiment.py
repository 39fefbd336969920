"""The steps of ``fusedmlp train``: read, split and encode the data, train on each backend, score, draw."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from fusedmlp.backends.selection import get_backend, instance_of, registry, unavailable_reason
from fusedmlp.checkpoints import Checkpoint
from fusedmlp.cli.curves import Curves
from fusedmlp.cli.plots import plot_curves, save_figure
from fusedmlp.cli.ranks import rank
from fusedmlp.cli.settings import Settings
from fusedmlp.cli.watch import MetricsWriter, ProgressBar, kept_until_done, progress_display
from fusedmlp.data.features import FeatureEncoder
from fusedmlp.data.messages import counted
from fusedmlp.data.predictor import Predictor
from fusedmlp.data.reading import read_table
from fusedmlp.data.table import Table
from fusedmlp.data.targets import ClassEncoder, TargetEncoder, fit_target
from fusedmlp.distributed.launched import communicator
from fusedmlp.training.callbacks import Callback
from fusedmlp.training.history import History
from fusedmlp.training.progress import ProgressLines


@dataclass(frozen=True)
class Prepared:
    """Encoded data, ready for any backend.

    Attributes
    ----------
    table : Table
    features : FeatureEncoder
    encoder : ClassEncoder or NumberEncoder
    loss : str
    X : array of shape (n1, m)
    target : array of shape (m,) or (m, n_outputs)
        As it was read.
    held_out : tuple (X, target), or None
        X and target of the held-out rows.
    """

    table: Table
    features: FeatureEncoder
    encoder: TargetEncoder
    loss: str
    X: np.ndarray
    target: np.ndarray
    held_out: tuple[np.ndarray, np.ndarray] | None

    @property
    def n_train(self) -> int:
        """Number of rows to train on, validation rows included."""
        return self.X.shape[1]

    @property
    def n_test(self) -> int:
        """Number of held-out rows."""
        return 0 if self.held_out is None else len(self.held_out[1])


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


def prepare(settings: Settings, table: Table | None = None) -> Prepared:
    """Read the data unless given, split them, fit the preprocessing on the training rows and encode both parts."""
    table = read_data(settings) if table is None else table
    target = table.require_target()
    encoder, loss = fit_target(target, settings.loss, table.classification)
    test_table, train_rows, test_rows = None, None, None
    if settings.test_data is not None:
        test_table = read_table(settings.test_data, settings.test_target, schema=table.schema)
    elif table.held_out is not None and settings.test_fraction_is_default:
        test_table = table.held_out
    elif settings.test_fraction > 0:
        classes = encoder.indices(target) if isinstance(encoder, ClassEncoder) else None
        train_rows, test_rows = split_rows(len(table), settings.test_fraction, classes, settings.random_state)
        encoder, loss = fit_target(target, loss, table.classification, train_rows)
        test_table = table
    features = FeatureEncoder.fit(table, train_rows, settings.standardize)
    X = features.transform(table, train_rows, settings.dtype).T
    if test_table is None:
        return Prepared(table, features, encoder, loss, X, _selected(target, train_rows), None)
    target_test = _selected(test_table.require_target(), test_rows)
    encoder.encode(target_test)  # a class that does not occur in training is an error before the training begins
    held_out = (features.transform(test_table, test_rows, settings.dtype).T, target_test)
    return Prepared(table, features, encoder, loss, X, _selected(target, train_rows), held_out)


def split_rows(
    m: int, test_fraction: float, classes: np.ndarray | None, random_state: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the rows to hold out; the same share of every class that has enough rows.

    Parameters
    ----------
    m : int
        Number of rows.
    test_fraction : float in (0, 1)
    classes : array of shape (m,) of int, optional
    random_state : int

    Returns
    -------
    train, test : arrays of int
        Row numbers in rising order.

    Raises
    ------
    ValueError
        No row would be left to train on.
    """
    from sklearn.model_selection import train_test_split

    n_test = max(1, round(m * test_fraction))
    if n_test >= m:
        raise ValueError(f"--test-fraction: {test_fraction:g} of {counted(m, 'row')} leaves none to train on")
    if classes is not None:
        classes = strata(classes, min(n_test, m - n_test))
    train, test = train_test_split(np.arange(m), test_size=n_test, random_state=random_state, stratify=classes)
    return np.sort(train), np.sort(test)


def strata(classes: np.ndarray, most: int, smallest: int = 2) -> np.ndarray | None:
    """The classes, with those that are small, or are too many for a part of `most` rows, as one; None: no strata.

    The largest classes stay by themselves. Every stratum has `smallest` rows at least.
    """
    sizes = np.bincount(classes)
    by_size = np.argsort(-sizes, kind="stable")
    kept = by_size[: max(0, most - 1)] if np.count_nonzero(sizes) > most else by_size
    kept = kept[sizes[kept] >= smallest]
    strata = np.where(np.isin(classes, kept), classes, -1)
    others = np.count_nonzero(strata == -1)
    if 0 < others < smallest:  # they join the largest class
        strata[strata == -1] = by_size[0]
    return strata if len(np.unique(strata)) > 1 else None


def train_on(backend: str, settings: Settings, data: Prepared, callbacks: Sequence[Callback]) -> Result:
    """Train on one backend. Initial weights and the order of the samples are the same on every backend."""
    sizes = data.features.n_outputs, data.encoder.n_outputs
    network = settings.make_network(*sizes, data.loss, instance_of(backend))
    predictor = Predictor(network, data.features, data.encoder)
    Y = data.encoder.encode(data.target, settings.dtype)
    curves = None if settings.plot is None else Curves(predictor, data.X, Y, data.held_out)
    validation_data = None
    if data.held_out is not None and not settings.validation_share and not settings.early_stopping:
        validation_data = (data.held_out[0], data.encoder.encode(data.held_out[1], settings.dtype))
    history = network.fit(
        data.X,
        Y,
        **settings.fitting(data.encoder),
        checkpoint=None if settings.checkpoint is None else checkpoint_of(settings, predictor),
        validation_data=validation_data,
        callbacks=[*callbacks, *([] if curves is None else [curves])],
        comm=communicator(),
    )
    scores = {} if data.held_out is None else predictor.scores(*data.held_out)
    training_loss = network.loss(data.X, Y)
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


def _selected(target: np.ndarray, rows: np.ndarray | None) -> np.ndarray:
    return target if rows is None else target[rows]
