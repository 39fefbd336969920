"""Targets as a stream's source has them: numbers, or class numbers that stand for columns of 0 and 1."""

from __future__ import annotations

import numpy as np

from fusedmlp.checks import check_count


def check_classes(classes: int | None) -> int | None:
    """The argument `classes`: None, or a number of them."""
    if classes is not None and check_count("classes", classes) < 2:
        raise ValueError(f"classes: expected at least 2; got {classes}")
    return classes


def write_targets(targets: np.ndarray, Y: np.ndarray, classes: int | None, name: str = "Y") -> None:
    """Write targets into Y, shape (k, nL).

    Parameters
    ----------
    targets : numpy.ndarray of shape (k, nL), or (k,)
        With `classes` of shape (k,) or (k, 1): whole numbers from 0 to classes - 1.
    Y : numpy.ndarray of shape (k, nL)
    classes : int, optional
    name : str
        For messages.

    Raises
    ------
    ValueError
        A number is no class, or the shape is another one.
    """
    if classes is None:
        targets = targets[:, None] if targets.ndim == 1 else targets
        if targets.shape != Y.shape:
            hint = f"; classes={Y.shape[1]} is for class numbers" if targets.shape[1] == 1 else ""
            raise ValueError(f"{name}: expected {Y.shape[1]} numbers for each sample; got {targets.shape[1]}{hint}")
        with np.errstate(over="ignore"):  # what overflows is not finite, and is found with the others
            np.copyto(Y, targets, casting="unsafe")
        return
    labels = targets.reshape(len(targets), -1)
    if labels.shape[1] != 1:
        raise ValueError(f"{name}: expected one class number for each sample; got {labels.shape[1]} numbers")
    labels = labels[:, 0]
    with np.errstate(invalid="ignore"):
        whole = labels.astype(np.int64)
    wrong = (whole != labels) | (whole < 0) | (whole >= classes)
    if wrong.any():
        raise ValueError(f"{name}: expected class numbers from 0 to {classes - 1}; got {labels[wrong][0]}")
    if Y.shape[1] == 1:  # two classes in one output
        Y[:, 0] = whole
        return
    Y[...] = 0
    Y[np.arange(len(whole)), whole] = 1


def outputs_of(shape: tuple[int, ...], classes: int | None) -> tuple[int, ...]:
    """How many outputs a network may have for targets of this shape, samples first."""
    if classes is not None:
        return (1, 2) if classes == 2 else (classes,)
    return (1 if len(shape) == 1 else shape[1],)
