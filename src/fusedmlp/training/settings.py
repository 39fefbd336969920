"""TrainingSettings: how to train, checked."""

from __future__ import annotations

from dataclasses import dataclass

from fusedmlp.checks import check_count, check_flag, check_number
from fusedmlp.engines.options import GradientPhase
from fusedmlp.training.schedules import Schedule


@dataclass(frozen=True)
class TrainingSettings:
    """How to train: the arguments of ``Network.fit`` that are not data.

    Attributes
    ----------
    epochs, batch_size : int
    schedule : callable
    alpha : float
        L2 strength.
    shuffle : bool
    early_stopping : bool
        Stop after `patience` epochs without an improvement of more than `tolerance`, and put the best weights back.
    patience : int
    tolerance : float
    clip_norm : float, optional
    dropout : tuple of float, optional
        A rate for the inputs of each layer.
    gradient_phase : GradientPhase, optional
    """

    epochs: int
    batch_size: int
    schedule: Schedule
    alpha: float = 0.0
    shuffle: bool = True
    early_stopping: bool = False
    patience: int = 10
    tolerance: float = 1e-4
    clip_norm: float | None = None
    dropout: tuple[float, ...] | None = None
    gradient_phase: GradientPhase | None = None

    def __post_init__(self) -> None:
        check_count("epochs", self.epochs)
        check_count("batch_size", self.batch_size)
        check_number("alpha", self.alpha, 0, include_low=True)
        check_flag("shuffle", self.shuffle)
        check_flag("early_stopping", self.early_stopping)
        check_count("patience", self.patience)
        check_number("tolerance", self.tolerance, 0, include_low=True)
        if self.clip_norm is not None:
            check_number("clip_norm", self.clip_norm, 0)
        if self.gradient_phase is not None and not isinstance(self.gradient_phase, GradientPhase):
            raise ValueError(f"gradient_phase: expected a GradientPhase; got {self.gradient_phase!r}")
