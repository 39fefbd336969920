"""ArrayStream: arrays that are larger than memory, above all memory-mapped files."""

from __future__ import annotations

from typing import Any

import numpy as np

from fusedmlp.model.architecture import Architecture
from fusedmlp.streams.base import BLOCK_BYTES, WINDOW_BYTES, BlockStream, Piece, Sizes, block_edges
from fusedmlp.streams.mapped import MappedRows
from fusedmlp.streams.targets import check_classes, outputs_of, write_targets


class ArrayStream(BlockStream):
    """Samples in arrays, which are read in blocks and never copied whole.

    Parameters
    ----------
    X : array of shape (n1, m)
        Of real numbers, of any type. In a memory-mapped file a sample should be contiguous:
        ``np.load("X.npy", mmap_mode="r").T`` of a table with a row per sample.
    Y : array of shape (nL, m), or (m,) for one output
        With `classes`, class numbers of shape (m,).
    sample_weight : array of shape (m,), optional
    classes : int, optional
        Y has whole numbers from 0 to classes - 1 in place of columns of 0 and 1.
    block_bytes, window_bytes : int
        The size of a block of contiguous samples, and of the part of the samples that is in memory, twice.

    Raises
    ------
    ValueError
        A shape or a type is wrong.

    Examples
    --------
    >>> import numpy as np
    >>> from fusedmlp import ArrayStream, Network
    >>> table, labels = np.random.default_rng(0).normal(size=(1000, 20)), np.arange(1000) % 3
    >>> net = Network([20, 8, 3], "relu", "categorical_cross_entropy", random_state=0)
    >>> history = net.fit(ArrayStream(table.T, labels, classes=3), epochs=2)
    >>> history.epochs
    2
    """

    def __init__(
        self,
        X: Any,
        Y: Any,
        sample_weight: Any = None,
        *,
        classes: int | None = None,
        block_bytes: int = BLOCK_BYTES,
        window_bytes: int = WINDOW_BYTES,
    ) -> None:
        sizes, self._classes = Sizes(block_bytes, window_bytes).check(), check_classes(classes)
        X, Y = _numbers(X, "X"), _numbers(Y, "Y")
        if X.ndim != 2 or 0 in X.shape:
            raise ValueError(f"X: expected shape (n1, m) with a column per sample; got {X.shape}")
        m = X.shape[1]
        if Y.ndim not in (1, 2) or Y.shape[-1] != m:
            raise ValueError(f"Y: expected {m} samples along the last axis, as X has; got shape {Y.shape}")
        weight = None if sample_weight is None else _numbers(sample_weight, "sample_weight")
        if weight is not None and weight.shape not in ((m,), (1, m)):
            raise ValueError(f"sample_weight: expected shape (m={m},), a number per sample of X; got {weight.shape}")
        self._X, self._Y, self._weight = X.T, Y.T, None if weight is None else weight.reshape(-1)
        self.n_inputs, self.m, self.weighted = X.shape[0], m, weight is not None
        self.n_outputs = outputs_of(self._Y.shape, classes)
        self.window_bytes = sizes.window_bytes
        starts = block_edges(m, X.shape[0] * X.itemsize, sizes.block_bytes)
        self._edges, self._mapped = np.append(starts, m), MappedRows.of(self._X)

    def read(self, start: int, stop: int, room: Piece) -> None:
        with np.errstate(over="ignore"):  # what overflows is not finite, and is found with the others
            np.copyto(room.X, self._X[start:stop], casting="unsafe")
        write_targets(self._Y[start:stop], room.Y, self._classes)
        if room.weight is not None and self._weight is not None:
            np.copyto(room.weight[:, 0], self._weight[start:stop], casting="unsafe")

    def announce(self, start: int, stop: int) -> None:
        if self._mapped is not None:
            self._mapped.announce(start, stop)

    def fetch(self, start: int, stop: int) -> None:
        if self._mapped is not None:
            self._mapped.fetch(start, stop)

    def in_place(self, architecture: Architecture, converts: bool) -> Piece | None:
        X, Y, weight, dtype = self._X, self._Y, self._weight, np.dtype(architecture.dtype)
        usable = X.dtype == dtype or (converts and X.dtype.kind == "f" and X.dtype.itemsize in (4, 8))
        ready = Y.dtype == dtype and self._classes is None
        if not usable or not (ready or self.m * architecture.n_outputs * dtype.itemsize <= self.window_bytes):
            return None
        if not ready:
            Y = np.empty((self.m, architecture.n_outputs), dtype)
            write_targets(self._Y, Y, self._classes)
        return Piece(X, Y.reshape(self.m, -1), None if weight is None else weight.astype(dtype)[:, None])

    def weights(self) -> np.ndarray | None:
        return self._weight

    def description(self) -> dict[str, Any]:
        return {
            "X": list(self._X.shape[::-1]),
            "Y": list(self._Y.shape[::-1]),
            "weighted": self.weighted,
            "blocks": len(self._edges) - 1,
            "window": self.window_bytes,
        }


def _numbers(x: Any, name: str) -> np.ndarray:
    x = np.asanyarray(x)
    if x.dtype.kind not in "fiub":
        raise ValueError(f"{name}: expected real numbers; got an array of dtype {x.dtype}")
    return x
