"""Settings: the arguments of ``fusedmlp train``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fusedmlp.backends.base import Backend
from fusedmlp.checks import check_count, check_number
from fusedmlp.cli.output_paths import check_outputs
from fusedmlp.cli.plots import check_plotting, picture_format
from fusedmlp.data.bundled import BUNDLED
from fusedmlp.data.recipe import EARLY_STOPPING_FRACTION, defaults_of, optimizer_of
from fusedmlp.data.targets import TargetEncoder
from fusedmlp.model.dropout import as_rates
from fusedmlp.model.names import ActivationName, DtypeName, PrecisionName, ScheduleName
from fusedmlp.model.optimizers import Optimizer
from fusedmlp.network import Network
from fusedmlp.training.recording import Every


@dataclass(frozen=True)
class Settings:
    """The arguments of ``fusedmlp train``, by the names of its options."""

    data: str
    target: str | None
    drop: tuple[str, ...]
    numeric: tuple[str, ...]
    categorical: tuple[str, ...]
    decimal: str | None
    missing: tuple[str, ...]
    day_first: bool
    require_target: bool
    test_data: str | None
    test_target: str | None
    test_fraction: float
    test_fraction_is_default: bool
    standardize: bool
    hidden: tuple[int, ...]
    activation: ActivationName
    loss: str | None
    bias: bool
    dtype: DtypeName
    optimizer: str
    learning_rate: float | None
    schedule: ScheduleName
    epochs: int
    batch_size: int
    alpha: float | None
    clip_norm: float | None
    dropout: float | tuple[float, ...]
    validation_fraction: float | None
    early_stopping: bool
    patience: int
    random_state: int
    precision: PrecisionName | None
    backend: str | None
    all_backends: bool
    out: str | None
    plot: str | None
    metrics: str | None
    checkpoint: str | None
    checkpoint_every: str
    stream: bool | None = None
    scratch: str | None = None

    def check(self) -> None:
        """Raise, before any data are read, if a number is out of range or an output file cannot be written."""
        for option, count in (
            ("--epochs", self.epochs),
            ("--batch-size", self.batch_size),
            ("--patience", self.patience),
        ):
            check_count(option, count)
        for option, share in (
            ("--test-fraction", self.test_fraction),
            ("--validation-fraction", self.validation_share),
        ):
            check_number(option, share, 0, 1, include_low=True)
        if self.alpha is not None:
            check_number("--alpha", self.alpha, 0, include_low=True)
        for option, number in (("--learning-rate", self.learning_rate), ("--clip-norm", self.clip_norm)):
            if number is not None:
                check_number(option, number, 0)
        try:
            as_rates(self.dropout, len(self.hidden) + 1)
        except ValueError as error:
            raise ValueError(f"--{error}") from None
        inputs = {
            "DATA": self.data,
            "--target": self.target,
            "--test-data": self.test_data,
            "--test-target": self.test_target,
        }
        outputs = {"--out": self.out, "--plot": self.plot, "--metrics": self.metrics, "--checkpoint": self.checkpoint}
        check_outputs(outputs, inputs)
        Every.of("--checkpoint-every", self.checkpoint_every)
        if self.plot is not None:
            picture_format(self.plot)
            check_plotting()

    def make_optimizer(self, target: TargetEncoder) -> Optimizer:
        """The optimizer with its learning rate."""
        return optimizer_of(self.optimizer, self.learning_rate, defaults_of(target))

    def make_network(self, n_inputs: int, n_outputs: int, loss: str, backend: Backend, number: int = 0) -> Network:
        """A network with new weights; `number` is added to the random state."""
        sizes = [n_inputs, *self.hidden, n_outputs]
        described = self.activation, loss, self.bias, self.dtype, backend
        return Network(sizes, *described, self.random_state + number, self.precision)

    def fitting(self, target: TargetEncoder) -> dict[str, Any]:
        """The arguments of `Network.fit` that do not depend on the samples."""
        return {
            "optimizer": self.make_optimizer(target),
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "schedule": self.schedule,
            "alpha": defaults_of(target).alpha if self.alpha is None else self.alpha,
            "validation_fraction": self.validation_share,
            "early_stopping": self.early_stopping,
            "patience": self.patience,
            "clip_norm": self.clip_norm,
            "dropout": self.dropout,
        }

    def to_dict(self) -> dict[str, Any]:
        """The arguments as plain data; files that are read by their whole paths."""
        data = asdict(self) | {"out": None, "plot": None, "metrics": None, "checkpoint": None}
        for name in ("data", "target", "test_data", "test_target", "scratch"):
            path = data[name]
            if path is not None and path not in BUNDLED and os.path.exists(path):
                data[name] = os.path.abspath(path)
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Settings:
        """The settings that `to_dict` described."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in data.items()
        }
        return cls(**values)

    @property
    def validation_share(self) -> float:
        """The share of the training rows that is set aside for validation."""
        if self.validation_fraction is None:
            return EARLY_STOPPING_FRACTION if self.early_stopping else 0.0
        return self.validation_fraction
