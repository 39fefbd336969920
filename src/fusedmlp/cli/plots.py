"""Plots of a training."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusedmlp.extras import require
from fusedmlp.files.atomic import write_atomically
from fusedmlp.training.history import History

FORMATS = ("png", "svg", "pdf")


def picture_format(path: str | os.PathLike[str]) -> str:
    """Return the format for a file name, from its suffix; ValueError if it is not one of `FORMATS`."""
    suffix = Path(path).suffix.lower().removeprefix(".")
    if suffix not in FORMATS:
        raise ValueError(f"{os.fspath(path)}: expected a picture whose name ends in .{', .'.join(FORMATS)}")
    return suffix


def check_plotting() -> None:
    """Raise MissingExtraError if matplotlib is not installed."""
    require("matplotlib.figure", "plot", "drawing")


def plot_loss(
    histories: Mapping[str, History], title: str = "Loss", training: str = "training", validation: str = "validation"
) -> Any:
    """Draw loss curves on a logarithmic axis: one colour per training, training loss solid, validation loss dashed.

    Parameters
    ----------
    histories : mapping of str to History
        The keys are the names in the legend, e.g. the backends.
    title : str
    training, validation : str
        The names of the two losses in the legend.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        No history has an epoch.
    MissingExtraError
        matplotlib is not installed.
    """
    if not any(history.loss for history in histories.values()):
        raise ValueError("histories: expected at least one with an epoch; got none")
    figure = require("matplotlib.figure", "plot", "drawing").Figure(figsize=(7, 4.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for i, (name, history) in enumerate(histories.items()):
        # Curves of backends that agree coincide: the first is drawn widest, so that each can be seen.
        width = 1.4 + 2.2 * (len(histories) - 1 - i)
        for losses, style, title_of_loss in (
            (history.loss, "-", training),
            (history.validation_loss, "--", validation),
        ):
            if losses:
                axes.plot(
                    range(1, len(losses) + 1),
                    losses,
                    style,
                    color=f"C{i}",
                    linewidth=width,
                    marker="o" if len(losses) == 1 else None,
                    alpha=1.0 if i == len(histories) - 1 else 0.45,
                    label=f"{name}, {title_of_loss}",
                )
    if any(loss > 0 for history in histories.values() for loss in (*history.loss, *history.validation_loss)):
        axes.set_yscale("log")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="epoch", ylabel="loss J", title=title)
    axes.grid(which="both", alpha=0.25)
    axes.legend()
    return figure


def save_figure(figure: Any, path: str | os.PathLike[str]) -> None:
    """Write a figure atomically, in the format of the suffix."""
    image = io.BytesIO()
    figure.savefig(image, format=picture_format(path))
    write_atomically(path, image.getvalue())
