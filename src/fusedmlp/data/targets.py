"""Encoders of the target: classes to labels of 0 and 1, numbers to scaled numbers, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusedmlp.checks import check_count
from fusedmlp.data.coded import CodedColumn, Target
from fusedmlp.data.messages import counted
from fusedmlp.model.losses import loss_named

Label = int | float | str | bool

CLASS_LOSSES = ("binary_cross_entropy", "categorical_cross_entropy")
NUMBER_LOSSES = ("squared_error", "poisson", "absolute_error", "huber", "quantile")
_BLOCK_ROWS = 2**20
MOST_NUMBERED_CLASSES = 20
"""A target with more different whole numbers is one of numbers, not of classes."""


@dataclass(frozen=True)
class ClassEncoder:
    """Encodes classes as labels of 0 and 1: in one output for two classes, else in one output per class.

    Attributes
    ----------
    classes : tuple of int, float, str or bool
        In order. With one output the second class has the label 1.
    n_outputs : int
    """

    classes: tuple[Label, ...]
    n_outputs: int

    def __post_init__(self) -> None:
        if not all(isinstance(label, int | float | str) for label in self.classes):
            raise ValueError("target: expected classes that are numbers, booleans or text")
        if len(self.classes) < 2 or len(set(self.classes)) < len(self.classes):
            raise ValueError(f"target: expected at least 2 different classes; got {list(self.classes)}")
        if self.n_outputs != len(self.classes) and (self.n_outputs, len(self.classes)) != (1, 2):
            raise ValueError(
                f"target: expected 1 output for 2 classes, else one per class; got {self.n_outputs} for "
                f"{len(self.classes)} classes"
            )

    def indices(self, target: Target) -> np.ndarray:
        """Return the index of each label among the classes, shape (m,); ValueError for an unknown label."""
        if target.ndim != 1:
            raise ValueError(f"target: expected one class per row; got shape {target.shape}")
        labels, inverse = different_of(target)
        place = {label: i for i, label in enumerate(self.classes)}
        unknown = [label for label in labels if label not in place]
        if unknown:
            raise ValueError(f"target: expected one of the classes {_listed(self.classes)}; got {unknown[0]!r}")
        return np.array([place[label] for label in labels], np.intp)[inverse]

    def encode(self, target: Target, dtype: str = "float32") -> np.ndarray:
        """Encode the target as Y, shape (n_outputs, m)."""
        indices = self.indices(target)
        if self.n_outputs == 1:
            return indices[None].astype(dtype)
        Y = np.zeros((len(indices), self.n_outputs), dtype=dtype)
        Y[np.arange(len(indices)), indices] = 1
        return Y.T

    def decode_indices(self, A: np.ndarray) -> np.ndarray:
        """Return the index of the likeliest class, shape (m,), for the network's output A_{L-1} (n_outputs, m)."""
        return (A[0] >= 0.5).astype(np.intp) if self.n_outputs == 1 else A.argmax(axis=0)

    def decode(self, A: np.ndarray) -> np.ndarray:
        """Return the likeliest class of each sample, shape (m,); text as objects."""
        return self.labels(self.decode_indices(A))

    def labels(self, indices: np.ndarray) -> np.ndarray:
        """Return the classes with the given indices; text as objects."""
        return np.array(self.classes, dtype=object if isinstance(self.classes[0], str) else None)[indices]

    def probabilities(self, A: np.ndarray) -> np.ndarray:
        """Return the probability of each class, shape (m, number of classes)."""
        return np.column_stack([1 - A[0], A[0]]) if self.n_outputs == 1 else A.T

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return (arrays, JSON data) for `target_from_state`."""
        return {}, {"classes": list(self.classes), "n_outputs": self.n_outputs}


@dataclass(frozen=True)
class NumberEncoder:
    """Encodes numbers y as (y − offset) / scale, for each output.

    Attributes
    ----------
    offset, scale : arrays of shape (n_outputs,), float64
    """

    offset: np.ndarray
    scale: np.ndarray

    def __post_init__(self) -> None:
        if self.offset.ndim != 1 or self.offset.shape != self.scale.shape or self.offset.dtype != self.scale.dtype:
            raise ValueError(f"target: expected an offset and a scale per output; got {self.offset.shape}")
        if not (np.isfinite(self.offset).all() and np.isfinite(self.scale).all() and (self.scale > 0).all()):
            raise ValueError("target: expected finite offsets, and finite scales > 0")

    @property
    def n_outputs(self) -> int:
        """Number of outputs."""
        return len(self.offset)

    def encode(self, target: Target, dtype: str = "float32") -> np.ndarray:
        """Encode the target as Y, shape (n_outputs, m)."""
        return ((self.columns(target) - self.offset) / self.scale).astype(dtype).T

    def columns(self, target: Target) -> np.ndarray:
        """Return the target as float64 of shape (m, n_outputs); ValueError if it is not numeric."""
        if isinstance(target, CodedColumn) or target.dtype.kind not in "fiub":
            raise ValueError(f"target: expected numbers; got text such as {target[0]!r}")
        columns = target.reshape(len(target), -1).astype(np.float64)
        if columns.shape[1] != self.n_outputs:
            raise ValueError(f"target: expected {counted(self.n_outputs, 'number')} per row; got {columns.shape[1]}")
        return columns

    def decode(self, A: np.ndarray) -> np.ndarray:
        """Return numbers in their original units, float64 of shape (m,), or (m, n_outputs) for several outputs."""
        numbers = A.T.astype(np.float64) * self.scale + self.offset
        return numbers[:, 0] if self.n_outputs == 1 else numbers

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return (arrays, JSON data) for `target_from_state`."""
        return {"target.offset": self.offset, "target.scale": self.scale}, {}


TargetEncoder = ClassEncoder | NumberEncoder


def target_from_state(arrays: Mapping[str, np.ndarray], data: Mapping[str, Any]) -> TargetEncoder:
    """Make the encoder that `state` described; ValueError, KeyError or TypeError for other data."""
    if "classes" in data:
        return ClassEncoder(tuple(data["classes"]), check_count("n_outputs", data["n_outputs"]))
    return NumberEncoder(arrays["target.offset"], arrays["target.scale"])


def fit_target(
    target: Target,
    loss: str | None = None,
    classification: bool | None = None,
    rows: np.ndarray | None = None,
) -> tuple[TargetEncoder, str]:
    """Choose the loss if none is given, and fit the encoder of the target.

    Text and booleans are classes. Whole numbers are classes if at most 20 different ones occur, each twice on average.
    Other numbers are numbers. The loss is binary_cross_entropy for two classes, categorical_cross_entropy for more, and
    squared_error for numbers.

    Parameters
    ----------
    target : array of shape (m,) or (m, n_outputs)
    loss : str, optional
        Numbers are standardised for squared_error, absolute_error, huber and quantile, scaled to [0, 1], the range of
        its outputs, for sum_squared_error, and not scaled for poisson.
    classification : bool, optional
        Whether the target is one of classes, if that is known and does not follow from the loss.
    rows : array of int, optional
        The rows from which offsets and scales are computed; None: all. Classes are taken from all rows.

    Returns
    -------
    encoder : ClassEncoder or NumberEncoder
    loss : str

    Raises
    ------
    ValueError
        The target does not suit the loss, or has one value only.
    """
    if loss in CLASS_LOSSES:
        classification = True
    elif loss is not None and loss_named(loss).kind in NUMBER_LOSSES:
        classification = False
    elif classification is None:
        classification = _looks_like_classes(target)
    return _fit_classes(target, loss) if classification else _fit_numbers(target, loss or "squared_error", rows)


def _looks_like_classes(target: Target) -> bool:
    if isinstance(target, CodedColumn):
        return True
    if target.ndim == 2:
        if np.isin(target, (0, 1)).all():
            raise ValueError(
                f"target: expected a column of classes; got {target.shape[1]} columns of 0 and 1 "
                "(one-hot columns become classes by np.argmax(y, axis=1); loss squared_error takes them as numbers)"
            )
        return False
    if target.dtype.kind in "Ob":
        return True
    most = min(MOST_NUMBERED_CLASSES, max(2, len(target) // 2))
    few = _different_labels(target, most) is not None
    return few and all(bool((target[block] == np.floor(target[block])).all()) for block in _blocks(len(target)))


def _different_labels(target: Target, most: int) -> list[Any] | None:
    """The different values of a target, in order; None, if there are more than `most`."""
    labels: set[Any] = set()
    for block in _blocks(len(target)):
        labels.update(different_of(rows_of(target, block))[0])
        if len(labels) > most:
            return None
    return sorted(labels)


def _fit_classes(target: Target, loss: str | None) -> tuple[ClassEncoder, str]:
    if target.ndim != 1:
        raise ValueError(f"target: {loss} expects one class per row; got {target.shape[1]} columns")
    m = len(target)
    classes = _different_labels(target, m)
    assert classes is not None
    if len(classes) < 2:
        raise ValueError(f"target: expected at least 2 classes; every row has {classes[0]!r}")
    if len(classes) > max(2, m / 2):
        raise ValueError(
            f"target: expected classes that repeat; got {len(classes)} different values in {m} rows, "
            f"such as {classes[0]!r}"
        )
    if loss == "binary_cross_entropy" and len(classes) > 2:
        raise ValueError(
            f"loss: binary_cross_entropy expects 2 classes; the target has {len(classes)}: {_listed(classes)} "
            "(categorical_cross_entropy takes any number)"
        )
    loss = loss or (CLASS_LOSSES[0] if len(classes) == 2 else CLASS_LOSSES[1])
    one_output = len(classes) == 2 and loss != "categorical_cross_entropy"
    return ClassEncoder(tuple(classes), 1 if one_output else len(classes)), loss


def _fit_numbers(target: Target, loss: str, rows: np.ndarray | None) -> tuple[NumberEncoder, str]:
    from sklearn.preprocessing import MinMaxScaler, StandardScaler

    if isinstance(target, CodedColumn) or target.dtype.kind not in "fiub":
        raise ValueError(f"loss: {loss} expects a target of numbers; got text such as {target[0]!r}")
    n = 1 if target.ndim == 1 else target.shape[1]
    if loss == "poisson":
        smallest = min(float(target[block].min()) for block in _blocks(len(target)))
        if smallest < 0:
            raise ValueError(f"target: poisson expects numbers >= 0; the smallest is {smallest:g}")
        return NumberEncoder(np.zeros(n), np.ones(n)), loss
    scaler = MinMaxScaler() if loss == "sum_squared_error" else StandardScaler()
    for block in _blocks(len(target) if rows is None else len(rows)):
        part = target[block if rows is None else rows[block]]
        scaler.partial_fit(part.reshape(len(part), -1).astype(np.float64))
    if loss == "sum_squared_error":
        return NumberEncoder(scaler.data_min_, np.where(scaler.data_range_ > 0, scaler.data_range_, 1)), loss
    return NumberEncoder(scaler.mean_, scaler.scale_), loss


def different_of(target: Target) -> tuple[list[Any], np.ndarray]:
    """(the different values of a target, in order; the place of each row's value among them)."""
    if isinstance(target, CodedColumn):
        return target.different()
    labels, places = np.unique(target, return_inverse=True)
    return labels.tolist(), places


def rows_of(target: Target, rows: slice | np.ndarray) -> Target:
    """Some rows of a target, in memory."""
    return target.take(rows) if isinstance(target, CodedColumn) else target[rows]


def _blocks(m: int) -> Iterator[slice]:
    """Give m rows in blocks, so that a pass over a memory-mapped target takes little memory."""
    for start in range(0, m, _BLOCK_ROWS):
        yield slice(start, min(start + _BLOCK_ROWS, m))


def _listed(classes: tuple[Label, ...] | list[Label], most: int = 10) -> str:
    return ", ".join(map(str, classes[:most])) + (", ..." if len(classes) > most else "")
