"""What is measured: tasks, sizes, and the numbers that every library is given."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from sklearn.utils import shuffle

from fusedmlp import Adam, Architecture
from fusedmlp.model.parameters import glorot_uniform

ADAM = Adam()
"""Of every epoch: learning rate 0.001, beta 0.9 and 0.999, epsilon 1e-8."""
ORDER_SEED = 5
"""scikit-learn draws its order of the samples from a seed; everyone else is given the same order."""
BCE, SOFTMAX = "binary_cross_entropy", "categorical_cross_entropy"


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
        Of an epoch.
    only : tuple of str
        The peers it is measured on; empty: all that can.
    """

    group: str
    layer_sizes: tuple[int, ...]
    m: int
    hidden_activation: str = "sigmoid"
    loss: str = BCE
    batch_size: int | None = None
    only: tuple[str, ...] = field(default=())

    @property
    def task(self) -> str:
        """ "step" (loss and all gradients of all samples), "epoch" (of Adam, in batches) or "forward"."""
        return self.group if self.group in ("epoch", "forward") else "step"

    @property
    def architecture(self) -> Architecture:
        return Architecture(self.layer_sizes, self.hidden_activation, self.loss)

    @property
    def flops(self) -> int:
        """Of the products that cannot be avoided.

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
    def steps(self) -> int:
        """Optimizer steps."""
        return -(-self.m // self.batch_size) if self.batch_size else 0

    @property
    def stored_bytes(self) -> int:
        """What a library that stores activations and errors needs, about: X, and four arrays of every other layer."""
        return 4 * self.m * (self.layer_sizes[0] + 4 * sum(self.layer_sizes[1:]))

    def same_work(self, other: Case) -> bool:
        """Whether both measure the same: a sweep passes through sizes of the tables."""
        return replace(self, group=self.task) == replace(other, group=other.task)

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value not in (None, ())}

    @classmethod
    def from_dict(cls, described: dict[str, Any]) -> Case:
        tuples = {name: tuple(described[name]) for name in ("layer_sizes", "only") if name in described}
        return cls(**{**described, **tuples})

    def __str__(self) -> str:
        text = f"{'-'.join(map(str, self.layer_sizes))}, m = {self.m:,}"
        if self.batch_size:
            text += f", batches of {self.batch_size}"
        if self.hidden_activation != "sigmoid":
            text += f", {self.hidden_activation}"
        return text + (", softmax" if self.loss == SOFTMAX else "")


class Problem(NamedTuple):
    """The numbers of a case: float32, rows as samples, as the other libraries take them.

    Attributes
    ----------
    case : Case
    X : array of shape (m, n1), C order
    Y : array of shape (m, nL), C order
    flat : array of shape (n_parameters,)
        The initial weights and biases, as in `fusedmlp.Parameters`.
    order : array of shape (m,)
        The order of an epoch's samples.
    """

    case: Case
    X: np.ndarray
    Y: np.ndarray
    flat: np.ndarray
    order: np.ndarray

    def layers(self) -> list[np.ndarray]:
        """Copies of W1 (n1, n2), b1 (n2,), W2, ... in this order."""
        arrays, at = [], 0
        for n_in, n_out in self.case.architecture.weight_shapes:
            for shape in ((n_in, n_out), (n_out,)):
                arrays.append(self.flat[at : at + int(np.prod(shape))].reshape(shape).copy())
                at += arrays[-1].size
        return arrays


def problem(case: Case) -> Problem:
    """Draw the numbers, the same ones in every process.

    Labels follow a linear rule with noise: with labels at random every gradient would be a sum that cancels to nearly
    nothing, and its relative error would measure the luck of the draw. Nothing much larger than X is allocated.
    """
    rng = np.random.default_rng(0)
    n1, n3 = case.layer_sizes[0], case.layer_sizes[-1]
    X, Y = np.empty((case.m, n1), np.float32), np.zeros((case.m, n3), np.float32)
    rule = rng.standard_normal((n1, n3), np.float32) / np.float32(np.sqrt(n1))
    for start in range(0, case.m, 65536):
        rows = slice(start, min(case.m, start + 65536))
        rng.standard_normal(dtype=np.float32, out=X[rows])
        score = X[rows] @ rule + rng.standard_normal((rows.stop - start, n3), np.float32) / 2
        if case.loss == SOFTMAX:
            Y[np.arange(start, rows.stop), score.argmax(axis=1)] = 1
        else:
            Y[rows] = score > 0.3
    flat = glorot_uniform(case.architecture, np.random.default_rng(1))
    if case.task == "step" and case.hidden_activation == "relu":
        _leave_the_kink(case, X, Y, flat)
    order = shuffle(np.arange(case.m), random_state=ORDER_SEED) if case.task == "epoch" else np.empty(0, np.int64)
    return Problem(case, X, Y, flat, order)


KINK = 2e-5
"""How near to 0 no Z of a relu step is: several times the rounding error of float32."""


def _leave_the_kink(case: Case, X: np.ndarray, Y: np.ndarray, flat: np.ndarray) -> None:
    """Put copies of other samples in place of those where some Z is so near to 0 that rounding decides its sign.

    relu has no derivative at 0. One unit of one sample that falls on the other side would change the gradient by far
    more than rounding does.
    """
    layers = [x.astype(np.float64) for x in Problem(case, X, Y, flat, X[:0, 0]).layers()]
    rows = max(1, 2**19 // sum(case.layer_sizes))
    for start in range(0, case.m, rows):
        A, near = X[start : start + rows].astype(np.float64), np.zeros(min(rows, case.m - start), bool)
        for layer in range(0, len(layers) - 2, 2):
            Z = A @ layers[layer] + layers[layer + 1]
            near |= (np.abs(Z) < KINK).any(axis=1)
            A = np.maximum(Z, 0)
        clear = np.flatnonzero(~near)
        for table in (X, Y):
            part = table[start : start + rows]
            part[near] = part[np.resize(clear, int(near.sum()))]


# Tables and sweeps ----------------------------------------------------------------------------------------------------

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
"""Who goes on where the others' activations no longer fit, or take minutes."""
SWEEP_N1, SWEEP_N2, SWEEP_M = 64, 1024, 65_536
"""A sweep over m has n1 and n2 of these, one over n2 has n1 and m."""


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
    """The cases of a part, fewer of them for a quick run; of "memory" none, which has its own measurement."""
    return {
        "full-batch": tuple(STEPS[k] for k in (1, 2, 3, 5)) if quick else STEPS,
        "variants": () if quick else (*VARIANTS, *EPOCH_VARIANTS),
        "epochs": EPOCHS,
        "prediction": PREDICTION,
        "sweep": sweep(quick),
        "memory": (),
    }[part]
