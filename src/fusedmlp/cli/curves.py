"""Curves: what a training reaches epoch by epoch, as the table of results has it, for its picture."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fusedmlp.data.predictor import Predictor
from fusedmlp.training.callbacks import Callback, RunningTraining

PANEL_SCORES = ("accuracy", "rmse", "deviance")
"""The first of these that the held-out rows have is drawn beside the losses."""


@dataclass
class Curves(Callback):
    """Measures the losses of the training rows and the held-out rows after every epoch, both without L2.

    Parameters
    ----------
    predictor : Predictor
    X, Y : arrays
        The training rows, encoded.
    held_out : tuple (X, target), or None

    Attributes
    ----------
    training, held_out_loss : list of float
    scores : list of float
        Of the held-out rows.
    score : str
        Its name: one of `PANEL_SCORES`; "" where there are no held-out rows.
    best_epoch : int or None
        From 1: the epoch whose weights early stopping put back, or the one with the lowest held-out loss.
    kept : bool
        Whether these weights are the network's now.
    """

    predictor: Predictor
    X: np.ndarray
    Y: np.ndarray
    held_out: tuple[Any, Any] | None
    training: list[float] = field(default_factory=list)
    held_out_loss: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    score: str = ""
    best_epoch: int | None = None
    kept: bool = False
    only_watches = True

    def to_dict(self) -> dict[str, Any]:
        """What was measured."""
        return {"training": self.training, "held_out_loss": self.held_out_loss, "scores": self.scores}

    def from_dict(self, data: dict[str, Any]) -> None:
        """Go on with what was measured before."""
        self.training, self.held_out_loss, self.scores = data["training"], data["held_out_loss"], data["scores"]

    def on_fit_begin(self, training: RunningTraining) -> None:
        """Leave out the epochs before, where a training goes on that had no picture."""
        missing = [math.nan] * (training.history.epochs - len(self.training))
        self.training[:0] = missing
        if self.held_out is not None:
            self.held_out_loss[:0] = missing
            self.scores[:0] = missing

    def on_epoch_end(self, training: RunningTraining) -> None:
        """Measure."""
        self.training.append(self.predictor.network.loss(self.X, self.Y))
        if self.held_out is not None:
            scores = self.predictor.scores(*self.held_out)
            self.held_out_loss.append(scores["loss"])
            self.score = next((name for name in PANEL_SCORES if name in scores), "")
            if self.score:
                self.scores.append(scores[self.score])

    def on_fit_end(self, training: RunningTraining) -> None:
        """Find the best epoch."""
        if "improvement" in training.history.stopped and training.history.best_epoch is not None:
            self.best_epoch, self.kept = training.history.best_epoch + 1, True
        elif self.held_out_loss:
            self.best_epoch = int(np.nanargmin(self.held_out_loss)) + 1
