"""Callbacks that report on a training: the progress bar and the metrics file."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from fusedmlp.files.atomic import write_atomically
from fusedmlp.training.callbacks import Callback, RunningTraining
from fusedmlp.training.history import History


class ProgressBar(Callback):
    """One line of a rich progress display for one training.

    Parameters
    ----------
    progress : rich.progress.Progress
    backend : str
    second_loss : str
        The name of the validation loss.
    """

    only_watches = True

    def __init__(self, progress: Any, backend: str, second_loss: str) -> None:
        self._progress = progress
        self._backend = backend
        self._second_loss = second_loss

    def on_fit_begin(self, training: RunningTraining) -> None:
        """Add the bar."""
        done = training.history.epochs
        self._task = self._progress.add_task(self._backend, total=training.epochs, completed=done, losses="")

    def on_epoch_end(self, training: RunningTraining) -> None:
        """Advance the bar by one epoch and show the losses."""
        history = training.history
        losses = f"loss {history.loss[-1]:.4g}"
        if history.validation_loss:
            losses += f"  {self._second_loss} {history.validation_loss[-1]:.4g}"
        self._progress.update(self._task, advance=1, losses=losses)

    def on_fit_end(self, training: RunningTraining) -> None:
        """Fill the bar if the training stopped early."""
        self._progress.update(self._task, total=training.history.epochs)


@contextmanager
def progress_display() -> Iterator[Any]:
    """Give a rich progress display on stderr, or None if stderr is not a terminal."""
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


@contextmanager
def kept_until_done(path: str) -> Iterator[IO[str]]:
    """A file to write, which replaces one of the name at the end of the block, and not after an exception.

    After an exception, what was written becomes the file where there was none.
    """
    if not os.path.exists(path):
        with open(path, "w", encoding="utf-8") as file:
            yield file
        return
    text = io.StringIO()
    yield text
    write_atomically(path, text.getvalue().encode())


class MetricsWriter(Callback):
    """Writes one line of JSON per epoch, at the end of the epoch.

    Parameters
    ----------
    file : text file
    backend : str
    """

    only_watches = True

    def __init__(self, file: IO[str], backend: str) -> None:
        self._file = file
        self._backend = backend

    def on_fit_begin(self, training: RunningTraining) -> None:
        """Write the lines of the epochs that are done, where a training goes on."""
        for epoch in range(training.history.epochs):
            self._write(training.history, epoch)

    def on_epoch_end(self, training: RunningTraining) -> None:
        """Write the line of this epoch and flush the file."""
        self._write(training.history, training.epoch)

    def _write(self, history: History, epoch: int) -> None:
        line = {
            "backend": self._backend,
            "epoch": epoch + 1,
            "loss": history.loss[epoch],
            "validation_loss": history.validation_loss[epoch] if history.validation_loss else None,
            "learning_rate": history.learning_rate[epoch],
            "seconds": history.seconds[epoch],
        }
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
