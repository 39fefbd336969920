"""How far a training has come: a bar on a terminal or in a notebook, lines elsewhere; on standard error."""

from __future__ import annotations

import math
import sys
import time
from typing import Any

from fusedmlp.training.callbacks import Callback, RunningTraining

QUIET_SECONDS = 5.0
"""A training that takes less prints no lines, unless it is asked to."""


class ProgressLines(Callback):
    """A line on standard error for every tenth of a training.

    Parameters
    ----------
    name : str
        Begins each line; may be empty.
    second_loss : str
        The name of the validation loss.
    quiet_seconds : float, optional
        No line is printed before, counted from the end of the first epoch, which may compile; by default
        `QUIET_SECONDS`.
    """

    only_watches = True

    def __init__(self, name: str = "", second_loss: str = "validation", quiet_seconds: float | None = None) -> None:
        self._name, self._second_loss = f"{name}: " if name else "", second_loss
        self._quiet_seconds = quiet_seconds
        self._start, self._first, self._tenth, self._compiled = time.monotonic(), 0, 0, math.inf

    def on_fit_begin(self, training: RunningTraining) -> None:
        """Start the clock."""
        self._start, self._first, self._tenth = time.monotonic(), training.history.epochs, 0
        self._compiled = math.inf

    def on_epoch_end(self, training: RunningTraining) -> None:
        """Print a line, if another tenth is done."""
        history, now = training.history, time.monotonic()
        self._compiled = min(self._compiled, now)
        quiet = QUIET_SECONDS if self._quiet_seconds is None else self._quiet_seconds
        tenth = 10 * (history.epochs - self._first) // max(1, training.epochs - self._first)
        if tenth == self._tenth or now - self._compiled < quiet or sys.stderr is None:
            return
        seconds = now - self._start
        self._tenth = tenth
        losses = losses_of(training, self._second_loss)
        print(f"{self._name}epoch {history.epochs} of {training.epochs}, {seconds:.0f} s, {losses}", file=sys.stderr)


class ProgressOfFit(Callback):
    """A bar on a terminal or in a notebook, which goes away at the end; elsewhere a line for every tenth."""

    only_watches = True

    def __init__(self) -> None:
        self._bar: Any = None
        self._lines = ProgressLines(quiet_seconds=0.0)

    def on_fit_begin(self, training: RunningTraining) -> None:
        """Draw the bar."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        self._lines.on_fit_begin(training)
        self._bar = None
        if console.is_terminal or console.is_jupyter:
            losses = TextColumn("{task.fields[losses]}")
            columns = TextColumn("epoch"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), losses
            self._bar = Progress(*columns, console=console, transient=True)
            done = training.history.epochs
            self._task = self._bar.add_task("", total=training.epochs, completed=done, losses="")
            self._bar.start()

    def on_epoch_end(self, training: RunningTraining) -> None:
        """Advance the bar, or print a line."""
        if self._bar is None:
            self._lines.on_epoch_end(training)
        else:
            self._bar.update(self._task, advance=1, losses=losses_of(training, "validation"))

    def close(self) -> None:
        """Take the bar away, after an exception too."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class ProgressOfMany:
    """One bar for the epochs of many trainings, or a line for every tenth of them.

    Parameters
    ----------
    networks, epochs : int
        Of all trainings together.
    quiet_seconds : float
        No line is printed before.
    """

    def __init__(self, networks: int, epochs: int, quiet_seconds: float = 0.0) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._networks, self._epochs, self._start = networks, epochs, time.monotonic()
        self._done, self._done_networks, self._tenth = 0, 0, 0
        self._quiet_seconds = quiet_seconds
        self._bar: Any = None
        console = Console(stderr=True)
        if console.is_terminal or console.is_jupyter:
            columns = TextColumn("epochs"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
            networks_column = TextColumn("{task.fields[networks]}")
            self._bar = Progress(*columns, networks_column, console=console, transient=True)
            self._task = self._bar.add_task("", total=epochs, networks="")
            self._bar.start()

    def advance(self, epochs: int, networks: int = 0) -> None:
        """So many more epochs, and trainings, are done; the epochs that one does not need count as done."""
        self._done, self._done_networks = self._done + epochs, self._done_networks + networks
        text = f"{self._done_networks} of {self._networks} networks"
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, networks=text)
            return
        tenth, seconds = 10 * self._done // self._epochs, time.monotonic() - self._start
        if tenth != self._tenth and sys.stderr is not None and seconds >= self._quiet_seconds:
            self._tenth = tenth
            print(f"{self._done} of {self._epochs} epochs, {seconds:.0f} s, {text}", file=sys.stderr)

    def close(self) -> None:
        """Take the bar away, after an exception too."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def losses_of(training: RunningTraining, second_loss: str) -> str:
    """The newest losses in words."""
    history = training.history
    text = f"loss {history.loss[-1]:.4g}"
    return f"{text}, {second_loss} {history.validation_loss[-1]:.4g}" if history.validation_loss else text
