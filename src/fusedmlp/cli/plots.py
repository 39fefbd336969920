"""Pictures of a training and of a model's predictions."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fusedmlp.cli.curves import Curves
from fusedmlp.data.messages import shortened
from fusedmlp.extras import require
from fusedmlp.files.atomic import write_atomically

FORMATS = ("png", "svg", "pdf")


def picture_format(path: str | os.PathLike[str]) -> str:
    """Return the format for a file name, from its suffix; ValueError if it is not one of `FORMATS`."""
    suffix = Path(path).suffix.lower().removeprefix(".")
    if suffix not in FORMATS:
        raise ValueError(f"{os.fspath(path)}: expected a picture whose name ends in .{', .'.join(FORMATS)}")
    return suffix


def check_plotting() -> None:
    """Raise MissingExtraError if matplotlib is not installed."""
    _figure_class()


def _figure_class() -> Any:
    """matplotlib's Figure, which needs no backend: a wrong MPLBACKEND would keep matplotlib from being imported."""
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        return require("matplotlib.figure", "plot", "drawing").Figure
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend


def new_figure(width: float, height: float) -> Any:
    """An empty figure of matplotlib, sizes in inches."""
    return _figure_class()(figsize=(width, height), dpi=150, layout="constrained")


def plot_curves(curves: Mapping[str, Curves], name: str, loss: str) -> Any:
    """Draw losses over the epochs, and beside them the score of the held-out rows: one colour per training.

    Parameters
    ----------
    curves : mapping of str to Curves
        The keys are the names in the legend, e.g. the backends.
    name : str
        Of the data and the network, for the title.
    loss : str
        The name of the loss.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        Nothing has an epoch.
    MissingExtraError
        matplotlib is not installed.
    """
    if not any(curve.training for curve in curves.values()):
        raise ValueError("curves: expected at least one with an epoch; got none")
    figure_class = _figure_class()
    score = next((curve.score for curve in curves.values() if curve.scores), "")
    figure = figure_class(figsize=(10 if score else 6.5, 4.2), dpi=150, layout="constrained")
    panels = figure.subplots(1, 2 if score else 1, squeeze=False)[0]
    marked: set[str] = set()
    for i, (backend, curve) in enumerate(curves.items()):
        # Curves of backends that agree coincide: the first is drawn widest, so that each can be seen.
        last = i == len(curves) - 1
        look = {"color": f"C{i}", "linewidth": 1.4 + 2.2 * (len(curves) - 1 - i), "alpha": 1.0 if last else 0.45}
        _draw(panels[0], curve.training, "-", f"{backend}, training rows", look)
        _draw(panels[0], curve.held_out_loss, "--", f"{backend}, held-out rows", look)
        if score:
            _draw(panels[1], curve.scores, "--", f"{backend}, held-out rows", look)
        best = f"epoch {curve.best_epoch}: {'weights kept' if curve.kept else 'lowest held-out loss'}"
        if curve.best_epoch is not None and len(curve.training) > 1 and best not in marked:
            marked.add(best)
            for panel in panels:
                panel.axvline(curve.best_epoch, color="0.4", linestyle=":", linewidth=1.2, label=best)
    losses = [number for curve in curves.values() for number in (*curve.training, *curve.held_out_loss)]
    _scale(panels[0], losses)
    panels[0].set(ylabel="mean of the rows, without L2", title=f"Loss J: {loss.replace('_', ' ')}")
    if score:
        title, label = _SCORE_LABELS[score]
        panels[1].set(ylabel=label, title=title)
    for panel in panels:
        panel.set_xlabel("epoch")
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.grid(which="major", alpha=0.3)
    if all(len(curve.training) == 1 for curve in curves.values()):
        for panel in panels:
            panel.set_xlim(0, 2)
            panel.set_xticks([1])
    panels[0].legend(fontsize="small")
    figure.suptitle(name)
    return figure


_SCORE_LABELS = {
    "accuracy": ("Accuracy", "share of the held-out rows"),
    "rmse": ("RMSE", "in the units of the target"),
    "deviance": ("Mean Poisson deviance", "of the held-out rows"),
}
_FEWEST_DECADES = 1.5


def _draw(panel: Any, numbers: Sequence[float], style: str, label: str, look: Mapping[str, Any]) -> None:
    if numbers:
        marker = ("o" if style == "-" else "x") if len(numbers) == 1 else None
        panel.plot(range(1, len(numbers) + 1), numbers, style, marker=marker, label=label, **look)


def _scale(panel: Any, losses: Sequence[float]) -> None:
    """A logarithmic axis where it has a few decades to show; within one, its ticks could not be read."""
    losses = [loss for loss in losses if not math.isnan(loss)]  # of epochs that nobody measured
    positive = [loss for loss in losses if loss > 0]
    if positive and max(positive) > min(positive) * 10**_FEWEST_DECADES:
        panel.set_yscale("log")
    elif positive:
        panel.set_ylim(min(0.0, min(losses)), max(losses) * 1.08)


def plot_confusion(classes: Sequence[object], truth: np.ndarray, predicted: np.ndarray, title: str) -> Any:
    """Draw how many rows of each class are predicted as which: a matrix, coloured by the share of the true class.

    Parameters
    ----------
    classes : sequence
    truth, predicted : arrays of shape (m,)
        Numbers of classes.
    title : str
    """
    figure_class = _figure_class()
    n = len(classes)
    counts = np.zeros((n, n), int)
    np.add.at(counts, (truth, predicted), 1)
    size = min(14.0, 3.5 + 0.45 * n)
    figure = figure_class(figsize=(size + 1, size), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    names = [shortened(str(label), 16) for label in classes]
    turned = max(map(len, names)) > 3
    axes.set_xticks(range(n), names, rotation=45 if turned else 0, ha="right" if turned else "center")
    axes.set_yticks(range(n), names)
    for i, j in np.ndindex(n, n) if n <= _MOST_NUMBERS else ():
        axes.text(j, i, f"{counts[i, j]:,}", ha="center", va="center", color="white" if shares[i, j] > 0.5 else "black")
    accuracy = np.trace(counts) / max(1, counts.sum())
    axes.set(xlabel="predicted class", ylabel="true class", title=f"{title}\naccuracy {accuracy:.4f}")
    figure.colorbar(image, label="share of the true class")
    return figure


_MOST_NUMBERS = 20


def plot_predictions(truth: np.ndarray, predicted: np.ndarray, title: str) -> Any:
    """Draw predicted against true numbers; the line is where they are equal.

    Parameters
    ----------
    truth, predicted : arrays of shape (m,)
    title : str
    """
    figure_class = _figure_class()
    figure = figure_class(figsize=(5.5, 5.2), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    low, high = float(min(truth.min(), predicted.min())), float(max(truth.max(), predicted.max()))
    axes.plot([low, high], [low, high], color="black", linewidth=0.8, label="equal")
    axes.plot(
        truth, predicted, ".", markersize=4, alpha=min(1.0, 40 / len(truth) ** 0.5 / 2), label="a row", color="C0"
    )
    rmse = float(np.sqrt(np.mean((truth - predicted) ** 2)))
    axes.set(xlabel="true", ylabel="predicted", title=f"{title}\nRMSE {rmse:.4g}", aspect="equal")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return figure


def save_figure(figure: Any, path: str | os.PathLike[str]) -> None:
    """Write a figure atomically, in the format of the suffix."""
    image = io.BytesIO()
    figure.savefig(image, format=picture_format(path))
    write_atomically(path, image.getvalue())
