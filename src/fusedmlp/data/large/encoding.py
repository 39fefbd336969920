"""A table as the samples of a network, in memory or, of a table that is larger, in scratch files."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fusedmlp.data.coded import Target
from fusedmlp.data.features import FeatureEncoder
from fusedmlp.data.large.scratch import Scratch
from fusedmlp.data.table import Table
from fusedmlp.data.targets import ClassEncoder, TargetEncoder, rows_of

_BLOCK_ROWS = 2**18


def row_numbers(chosen: np.ndarray, scratch: Scratch | None, name: str) -> np.ndarray:
    """The numbers of the rows that are chosen, in rising order.

    Parameters
    ----------
    chosen : array of bool, shape (m,)
    scratch : Scratch or None
        Where the numbers are kept; None: in memory.
    name : str
        Of the file.
    """
    if scratch is None:
        return np.flatnonzero(chosen)
    with scratch.writing(name, np.int64, (int(np.count_nonzero(chosen)),)) as writer:
        for block in _blocks(len(chosen)):
            writer.write(block.start + np.flatnonzero(chosen[block]))
    return scratch.array(name)


def class_numbers(encoder: ClassEncoder, target: Target) -> np.ndarray:
    """The number of each row's class, in the smallest type that holds them."""
    numbers = np.empty(len(target), np.min_scalar_type(len(encoder.classes)))
    for block in _blocks(len(target)):
        numbers[block] = encoder.indices(rows_of(target, block))
    return numbers


def encoded_features(
    features: FeatureEncoder, table: Table, rows: np.ndarray | None, dtype: str, scratch: Scratch | None, name: str
) -> np.ndarray:
    """X (n1, m), the transpose of an array with a row per sample; arguments as `FeatureEncoder.transform` has them."""
    if scratch is None:
        return features.transform(table, rows, dtype).T
    m = len(table) if rows is None else len(rows)
    with scratch.writing(name, dtype, (m, features.n_outputs)) as writer:
        buffer = np.empty((0, features.n_outputs), dtype)
        for block in features.blocks(table, rows):
            size = block.stop - block.start if isinstance(block, slice) else len(block)
            if size > len(buffer):
                buffer = np.empty((size, features.n_outputs), dtype)
            writer.write(buffer[: features.transform_block(table, block, buffer)])
            scratch.release()
    return scratch.array(name).T


def encoded_target(
    encoder: TargetEncoder, target: Target, rows: np.ndarray | None, dtype: str, scratch: Scratch | None, name: str
) -> np.ndarray:
    """Y (nL, m) of some rows of a target, or of all."""
    m = len(target) if rows is None else len(rows)
    if scratch is None:
        return encoder.encode(target if rows is None else rows_of(target, rows), dtype)
    with scratch.writing(name, dtype, (m, encoder.n_outputs)) as writer:
        for block in _blocks(m):
            part = rows_of(target, block if rows is None else rows[block])
            writer.write(encoder.encode(part, dtype).T)
    return scratch.array(name).T


def _blocks(m: int) -> Iterator[slice]:
    for start in range(0, m, _BLOCK_ROWS):
        yield slice(start, min(start + _BLOCK_ROWS, m))
