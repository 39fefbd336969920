"""A case, and those that are measured on a CPU."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any

from fusedmlp import Adam, Architecture

ADAM = Adam()
"""The optimizer of every epoch: learning rate 0.001, beta 0.9 and 0.999, epsilon 1e-8."""
BCE, SOFTMAX = "binary_cross_entropy", "categorical_cross_entropy"
CHECKED_STEPS = 20
"""So many steps of an epoch are compared with float64. With relu, rounding errors grow from step to step: at
784-512-512-10 float32 is off by 2e-6 of the change after 20 steps of 256 samples, by 0.11 after 235."""


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Parameters
    ----------
    group : str
        The table it belongs to: "step", "epoch", "forward", "m" or "n2" (the last two are sweeps of steps).
    layer_sizes : tuple of int
    m : int
        Samples.
    hidden_activation, loss : str
        As in `fusedmlp.Architecture`.
    batch_size : int, optional
        Samples of a batch, in an epoch.
    only : tuple of str
        The peers it is measured on; empty: all that can.
    precision : {"strict", "high", "medium"}
        Of float32 products, as in `fusedmlp.Network`; on a GPU only. "medium" allows TF32 to every library; at
        "high" the others are strict.
    dtype : {"float32", "float64"}
    """

    group: str
    layer_sizes: tuple[int, ...]
    m: int
    hidden_activation: str = "sigmoid"
    loss: str = BCE
    batch_size: int | None = None
    only: tuple[str, ...] = field(default=())
    precision: str = "strict"
    dtype: str = "float32"

    @property
    def task(self) -> str:
        """ "step" (loss and all gradients of all samples), "epoch" (of Adam, in batches) or "forward"."""
        return self.group if self.group in ("epoch", "forward") else "step"

    @property
    def architecture(self) -> Architecture:
        return Architecture(self.layer_sizes, self.hidden_activation, self.loss, dtype=self.dtype)

    @property
    def flops(self) -> int:
        """Additions and multiplications of the products that cannot be avoided.

        Forward, weight gradients, and the errors of every layer but the input. A product with a single column, such
        as that of one output, is element-wise work.
        """
        passes = 1 if self.task == "forward" else 3
        pairs = [pair for pair in pairwise(self.layer_sizes) if min(pair) > 1]
        inputs = 2 * self.layer_sizes[0] * self.layer_sizes[1] if passes == 3 and min(self.layer_sizes[:2]) > 1 else 0
        return self.m * (passes * sum(2 * n_in * n_out for n_in, n_out in pairs) - inputs)

    @property
    def hidden_values(self) -> int:
        """Elements of all hidden layers together."""
        return self.m * sum(self.layer_sizes[1:-1])

    @property
    def item(self) -> int:
        """Bytes of a number."""
        return 8 if self.dtype == "float64" else 4

    @property
    def hidden_bytes(self) -> int:
        """H: the activations of all hidden layers, once."""
        return self.item * self.hidden_values

    @property
    def sample_bytes(self) -> int:
        """X and Y, once."""
        return self.item * self.m * (self.layer_sizes[0] + self.layer_sizes[-1])

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return -(-self.m // self.batch_size) if self.batch_size else 0

    @property
    def checked(self) -> Case:
        """The case whose result is compared with float64: of a long epoch, one of the first `CHECKED_STEPS` steps.

        Its last batch is as large as the last batch of the whole epoch.
        """
        if self.batch_size is None or self.steps <= CHECKED_STEPS:
            return self
        last = self.m % self.batch_size or self.batch_size
        return replace(self, m=(CHECKED_STEPS - 1) * self.batch_size + last)

    @property
    def stored_bytes(self) -> int:
        """Memory of a library that stores activations and errors, about: X, and four arrays of every other layer."""
        return self.item * self.m * (self.layer_sizes[0] + 4 * sum(self.layer_sizes[1:]))

    def same_work(self, other: Case) -> bool:
        """Whether both measure the same: a sweep passes through sizes of the tables."""
        return replace(self, group=self.task) == replace(other, group=other.task)

    def to_dict(self) -> dict[str, Any]:
        """Without what has its default."""
        return {name: value for name, value in asdict(self).items() if value not in (None, (), "strict", "float32")}

    @classmethod
    def from_dict(cls, described: dict[str, Any]) -> Case:
        kept: dict[str, Any] = {name: tuple(described[name]) for name in ("layer_sizes", "only") if name in described}
        precision = described.get("precision", "strict")
        kept["precision"] = "medium" if precision == "tf32" else precision  # as earlier results have it
        return cls(**{**described, **kept})

    def __str__(self) -> str:
        text = f"{'-'.join(map(str, self.layer_sizes))}, m = {self.m:,}"
        if self.batch_size:
            text += f", batches of {self.batch_size}"
        if self.hidden_activation != "sigmoid":
            text += f", {self.hidden_activation}"
        if self.loss != BCE:
            text += ", softmax" if self.loss == SOFTMAX else f", {self.loss}"
        text += f", {self.dtype}" if self.dtype != "float32" else ""
        return text + {"strict": "", "high": ", high", "medium": ", TF32"}[self.precision]


# On a CPU -------------------------------------------------------------------------------------------------------------

STEPS = (
    Case("step", (784, 1024, 1), 8192),
    Case("step", (784, 128, 1), 60_000),
    Case("step", (64, 1024, 1), 65_536),
    Case("step", (16, 256, 1), 262_144),
    Case("step", (2, 64, 1), 1_000_000),
    Case("step", (30, 64, 1), 569),
)
VARIANTS = (
    *(Case("step", (64, 1024, 1), 65_536, hidden_activation=name) for name in ("tanh", "relu")),
    *(Case("step", (16, 256, 1), 262_144, hidden_activation=name) for name in ("tanh", "relu")),
    Case("step", (30, 64, 1), 569, hidden_activation="relu"),
    Case("step", (784, 128, 10), 60_000, loss=SOFTMAX),
    Case("step", (64, 1024, 10), 65_536, loss=SOFTMAX),
    Case("step", (64, 256, 256, 1), 65_536),
    Case("step", (30, 64, 64, 1), 569),
    Case("step", (784, 256, 128, 10), 60_000, hidden_activation="relu", loss=SOFTMAX),
)
EPOCHS = (
    Case("epoch", (30, 64, 1), 569, batch_size=32),
    Case("epoch", (64, 100, 1), 20_000, batch_size=200),
    Case("epoch", (784, 128, 10), 60_000, loss=SOFTMAX, batch_size=200),
)
EPOCH_VARIANTS = (
    *(Case("epoch", (64, 100, 1), 20_000, hidden_activation=name, batch_size=200) for name in ("tanh", "relu")),
    Case("epoch", (64, 100, 50, 1), 20_000, batch_size=200),
)
PREDICTION = (Case("forward", (64, 1024, 1), 65_536),)
OURS_AT_LENGTH = ("fused",)
"""The engine that is measured at lengths where the others' activations no longer fit, or take minutes."""
SWEEP_N1, SWEEP_N2, SWEEP_M = 64, 1024, 65_536
"""The sizes that a sweep leaves fixed: n1 and n2 in a sweep over m, n1 and m in a sweep over n2."""


def sweep(quick: bool) -> tuple[Case, ...]:
    """Steps over m and over n2."""
    ms = (4096, 16_384, 65_536) if quick else tuple(2**k for k in range(10, 19, 2))
    long = (262_144,) if quick else (1_000_000, 4_000_000)
    n2s = (64, 256, 1024) if quick else tuple(2**k for k in range(4, 13))
    return (
        *(Case("m", (SWEEP_N1, SWEEP_N2, 1), m) for m in ms),
        *(Case("m", (SWEEP_N1, SWEEP_N2, 1), m, only=OURS_AT_LENGTH) for m in long),
        *(Case("n2", (SWEEP_N1, n2, 1), SWEEP_M) for n2 in n2s),
    )


PARTS = ("full-batch", "variants", "epochs", "prediction", "sweep", "memory")


def cases_of(part: str, quick: bool) -> tuple[Case, ...]:
    """The cases of a part, fewer for a quick run. "memory" has none: it is measured separately."""
    return {
        "full-batch": tuple(STEPS[k] for k in (1, 2, 3, 5)) if quick else STEPS,
        "variants": () if quick else (*VARIANTS, *EPOCH_VARIANTS),
        "epochs": EPOCHS,
        "prediction": PREDICTION,
        "sweep": sweep(quick),
        "memory": (),
    }[part]
