"""Pictures of a training."""

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
    """The format that the name of a picture asks for; ValueError where it is none of `FORMATS`."""
    suffix = Path(path).suffix.lower().removeprefix(".")
    if suffix not in FORMATS:
        raise ValueError(f"{os.fspath(path)}: expected a picture whose name ends in .{', .'.join(FORMATS)}")
    return suffix


def check_plotting() -> None:
    """Raise MissingExtraError where matplotlib is not there."""
    require("matplotlib.figure", "plot", "drawing")


def plot_loss(
    histories: Mapping[str, History], title: str = "Loss", training: str = "training", validation: str = "validation"
) -> Any:
    """Loss curves: a colour per training, its training loss solid, its validation loss dashed; log axis.

    Parameters
    ----------
    histories : mapping of str to History
        By the name that the legend gives them, e.g. the backend.
    title : str
    training, validation : str
        What the legend calls the two losses.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        There is nothing to draw.
    MissingExtraError
        matplotlib is not installed.
    """
    if not any(history.loss for history in histories.values()):
        raise ValueError("histories: expected at least one with an epoch; got none")
    figure = require("matplotlib.figure", "plot", "drawing").Figure(figsize=(7, 4.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for i, (name, history) in enumerate(histories.items()):
        # Backends that agree lie on top of each other: the first is drawn widest, so that each can be seen.
        width = 1.4 + 2.2 * (len(histories) - 1 - i)
        for losses, style, what in ((history.loss, "-", training), (history.validation_loss, "--", validation)):
            if losses:
                axes.plot(
                    range(1, len(losses) + 1),
                    losses,
                    style,
                    color=f"C{i}",
                    linewidth=width,
                    marker="o" if len(losses) == 1 else None,
                    alpha=1.0 if i == len(histories) - 1 else 0.45,
                    label=f"{name}, {what}",
                )
    if any(loss > 0 for history in histories.values() for loss in (*history.loss, *history.validation_loss)):
        axes.set_yscale("log")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="epoch", ylabel="loss J", title=title)
    axes.grid(which="both", alpha=0.25)
    axes.legend()
    return figure


def save_figure(figure: Any, path: str | os.PathLike[str]) -> None:
    """Write a figure atomically, in the format that its name asks for."""
    image = io.BytesIO()
    figure.savefig(image, format=picture_format(path))
    write_atomically(path, image.getvalue())
