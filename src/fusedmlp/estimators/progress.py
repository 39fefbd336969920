"""A progress bar for ``verbose="bar"``: on standard error, on a terminal only."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any


class Progress:
    """A bar of epochs while it is entered, where `verbose` is "bar" and standard error is a terminal.

    Parameters
    ----------
    verbose : bool, int or "bar"
    name : str
        Stands before the bar.
    epochs : int
    """

    def __init__(self, verbose: Any, name: str, epochs: int) -> None:
        self._bar: Any = None
        if verbose == "bar" and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            loss = TextColumn("{task.fields[loss]}")
            columns = TextColumn(name), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), loss
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(name, total=epochs, loss="")

    def advance(self, estimator: Any) -> None:
        """An epoch is done: show its loss, and the validation score where there is one."""
        if self._bar is None:
            return
        text = f"loss {estimator.loss_:.4g}"
        if estimator.validation_scores_:
            text += f", validation score {estimator.validation_scores_[-1]:.4g}"
        self._bar.update(self._task, advance=1, loss=text)

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
