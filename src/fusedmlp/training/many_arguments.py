"""The arguments of `fit_many`: which are one value for all networks, and which a list with a value per network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from fusedmlp.checks import shown

SINGLE = (
    "optimizer",
    "epochs",
    "batch_size",
    "learning_rate",
    "schedule",
    "alpha",
    "shuffle",
    "validation_fraction",
    "early_stopping",
    "patience",
    "tolerance",
    "random_state",
    "clip_norm",
    "gradient_phase",
    "state",
)
"""Arguments whose value is never a sequence: every list, tuple or vector of one has a value per network."""


@contextmanager
def naming(network: int) -> Iterator[None]:
    """Let errors of arguments say which network they are about."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        if type(error) not in (ValueError, RuntimeError):
            raise
        raise type(error)(f"networks[{network}]: {error}") from error


def spread(name: str, value: Any, n: int) -> Sequence[Any]:
    """The n networks' values of an argument that is not named in `SINGLE`, or is.

    Raises
    ------
    ValueError
        There are not as many values as networks.
    """
    if name in SINGLE:
        listed = isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim == 1)
    else:
        listed = _IS_LIST[name](value, n)
    if not listed:
        if name == "callbacks" and isinstance(value, Iterable):
            value = tuple(value)  # each network reads them
        return [value] * n
    if len(value) != n:
        raise ValueError(f"{name}: expected {n} values, one per network; got {len(value)}")
    return value.tolist() if isinstance(value, np.ndarray) else value


def _targets_are_listed(Y: Any, n: int) -> bool:
    return isinstance(Y, list) and bool(Y) and all(hasattr(y, "shape") and len(y.shape) >= 1 for y in Y)


def _weights_are_listed(weight: Any, n: int) -> bool:
    return isinstance(weight, list | tuple) and any(w is None or np.ndim(w) > 0 for w in weight)


def _data_are_listed(data: Any, n: int) -> bool:
    return isinstance(data, list)


def _callbacks_are_listed(callbacks: Any, n: int) -> bool:
    several = isinstance(callbacks, list | tuple) and bool(callbacks)
    return several and all(isinstance(each, Iterable) and not callable(each) for each in callbacks)


def _rates_are_listed(dropout: Any, n: int) -> bool:
    if not isinstance(dropout, list | tuple):
        return False
    return any(np.ndim(rates) > 0 for rates in dropout) or (isinstance(dropout, list) and len(dropout) == n)


_IS_LIST = {
    "Y": _targets_are_listed,
    "sample_weight": _weights_are_listed,
    "validation_data": _data_are_listed,
    "callbacks": _callbacks_are_listed,
    "dropout": _rates_are_listed,
}


def index_lists(name: str, value: Any, n: int) -> Sequence[Any]:
    """The n networks' indices of samples, or None for all samples.

    Raises
    ------
    ValueError
        It is no sequence, or not of as many as networks.
    """
    if value is None:
        return [None] * n
    if not isinstance(value, list | tuple) and getattr(value, "ndim", 0) != 2:
        raise ValueError(f"{name}: expected a list of {n} arrays of indices, one per network; got {shown(value)}")
    if len(value) != n:
        raise ValueError(f"{name}: expected {n} arrays of indices, one per network; got {len(value)}")
    return value


def as_indices(name: str, indices: Any, m: int) -> np.ndarray:
    """Indices of columns of X as int64, without a copy where they are that already.

    Raises
    ------
    ValueError
        They are no whole numbers from 0 to m - 1 on one axis, or there are none.
    """
    try:
        found = np.asarray(indices)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected indices of samples; got {shown(indices)} ({error})") from None
    if found.ndim != 1 or (found.size and found.dtype.kind not in "iu"):
        raise ValueError(
            f"{name}: expected whole numbers on one axis, the samples' columns in X; got shape {found.shape}, "
            f"dtype {found.dtype}"
        )
    if not found.size:
        raise ValueError(f"{name}: expected at least one index; got none")
    low, high = int(found.min()), int(found.max())
    if low < 0 or high >= m:
        raise ValueError(f"{name}: expected indices from 0 to {m - 1}; got {low if low < 0 else high}")
    return np.ascontiguousarray(found, np.int64)
