"""Callbacks that watch a training: the progress bar and the metrics file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from fusedmlp.training.callbacks import Callback, RunningTraining


class ProgressBar(Callback):
    """One line of a rich progress display for one training.

    Parameters
    ----------
    progress : rich.progress.Progress
    backend : str
    second : str
        What the second loss is called, where there is one.
    """

    def __init__(self, progress: Any, backend: str, second: str) -> None:
        self._progress = progress
        self._backend = backend
        self._second = second

    def on_fit_begin(self, training: RunningTraining) -> None:
        """Show the bar."""
        self._task = self._progress.add_task(self._backend, total=training.epochs, losses="")

    def on_epoch_end(self, training: RunningTraining) -> None:
        """Move it on."""
        history = training.history
        losses = f"loss {history.loss[-1]:.4g}"
        if history.validation_loss:
            losses += f"  {self._second} {history.validation_loss[-1]:.4g}"
        self._progress.update(self._task, advance=1, losses=losses)

    def on_fit_end(self, training: RunningTraining) -> None:
        """Fill it, where the training stopped early."""
        self._progress.update(self._task, total=training.history.epochs)


@contextmanager
def progress_display() -> Iterator[Any]:
    """A rich progress display on stderr, or None where that is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[losses]}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    ) as progress:
        yield progress


class MetricsWriter(Callback):
    """A line of JSON per epoch, written as the training goes on.

    Parameters
    ----------
    file : text file
    backend : str
    """

    def __init__(self, file: IO[str], backend: str) -> None:
        self._file = file
        self._backend = backend

    def on_epoch_end(self, training: RunningTraining) -> None:
        """Write the epoch, whole, and hand it to the system."""
        history = training.history
        line = {
            "backend": self._backend,
            "epoch": training.epoch + 1,
            "loss": history.loss[-1],
            "validation_loss": history.validation_loss[-1] if history.validation_loss else None,
            "learning_rate": history.learning_rate[-1],
            "seconds": history.seconds[-1],
        }
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
