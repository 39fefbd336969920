"""History: what a training went through, epoch by epoch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fusedmlp.extras import require


@dataclass
class History:
    """The record of a training; every list has an entry per epoch.

    Attributes
    ----------
    loss : list of float
        Training loss: the batches' losses, each before its step, averaged by their number of samples; L2 included.
        With sample weights it is the weighted mean over the samples.
    validation_loss : list of float
        J of the validation samples after the epoch, without L2; empty where there are none.
    learning_rate : list of float
    seconds : list of float
        Seconds of training, validation and callbacks not counted.
    samples : int
        Samples trained on in an epoch.
    best_epoch : int or None
        The epoch (from 0) with the lowest validation loss (training loss, where there are no validation samples).
    stopped : str
        Why the training ended.
    error : str or None
        The message of the error that ended the training, where it diverged.
    """

    loss: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    learning_rate: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    samples: int = 0
    best_epoch: int | None = None
    stopped: str = ""
    error: str | None = None

    def to_frame(self) -> Any:
        """A pandas data frame with a row per epoch: epoch (from 1), loss, validation_loss, learning_rate and seconds.

        Raises
        ------
        MissingExtraError
            pandas is not installed.
        """
        pandas = require("pandas", "pandas", "data frames")
        columns: dict[str, Any] = {"epoch": range(1, self.epochs + 1), "loss": self.loss}
        if self.validation_loss:
            columns["validation_loss"] = self.validation_loss
        columns |= {"learning_rate": self.learning_rate, "seconds": self.seconds}
        return pandas.DataFrame(columns)

    @property
    def epochs(self) -> int:
        """Epochs that were trained."""
        return len(self.loss)

    @property
    def samples_per_second(self) -> float:
        """Training throughput. The first epoch, whose time holds compilation, counts only where it is the only one."""
        seconds = self.seconds[1:] or self.seconds
        return len(seconds) * self.samples / sum(seconds) if sum(seconds) > 0 else 0.0
