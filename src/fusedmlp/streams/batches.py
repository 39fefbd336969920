"""BatchStream: samples from an iterator of batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

import numpy as np

from fusedmlp.checks import check_count, check_flag, shown
from fusedmlp.engines.sparse import is_sparse
from fusedmlp.streams.base import WINDOW_BYTES, Piece, Sizes, Stream
from fusedmlp.streams.reading import Reading
from fusedmlp.streams.targets import check_classes, write_targets


class BatchStream(Stream):
    """Samples from an iterable of batches: a list, a generator, a data loader of another library.

    The batches may be of any sizes: `batch_size` of `fit` alone says how many samples a step has. They are read in a
    thread of their own. The samples come in the order of the batches; `shuffle` mixes those that are in memory at once.

    Parameters
    ----------
    batches : iterable, or callable that returns one
        Of tuples (X, Y) or (X, Y, sample_weight): X (n1, k), Y (nL, k) or (k,), weights (k,). Arrays, SciPy's sparse
        matrices, or anything that NumPy makes an array of. A callable is called before every epoch. An iterator, such
        as a generator, can be read for one epoch only.
    rows : bool
        X is (k, n1) and Y is (k, nL): a row per sample.
    classes : int, optional
        Y has whole numbers from 0 to classes - 1 in place of columns of 0 and 1.
    samples : int, optional
        An epoch ends after so many. By default it ends with the iterator, and all epochs have as many samples as the
        first.
    window_bytes : int
        The size of the part of the samples that is in memory, twice.

    Raises
    ------
    ValueError
        There is no batch, or the first one is no such tuple.
    """

    def __init__(
        self,
        batches: Iterable[Any] | Callable[[], Iterable[Any]],
        *,
        rows: bool = False,
        classes: int | None = None,
        samples: int | None = None,
        window_bytes: int = WINDOW_BYTES,
    ) -> None:
        if not callable(batches) and not isinstance(batches, Iterable):
            raise ValueError(
                f"batches: expected an iterable of (X, Y), or a function that returns one; got {batches!r}"
            )
        self._source, self._rows, self.classes = batches, check_flag("rows", rows), check_classes(classes)
        self.m = None if samples is None else check_count("samples", samples)
        self.cut = samples is not None
        self.window_bytes = Sizes(window_bytes=window_bytes).check().window_bytes
        self._iterator: Iterator[Any] | None = self._begin()
        try:
            first = next(self._iterator)
        except StopIteration:
            raise ValueError("batches: expected at least one batch; got none") from None
        piece = self.piece(first)
        self.n_inputs, self.weighted = piece.X.shape[1], piece.weight is not None
        self._iterator = chain([first], self._iterator)

    @property
    def once(self) -> bool:
        """Whether it can be read for one epoch only."""
        return isinstance(self._source, Iterator)

    def _begin(self) -> Iterator[Any]:
        source = self._source() if callable(self._source) else self._source
        try:
            return iter(source)
        except TypeError:
            raise ValueError(f"batches: expected a function that returns an iterable; got {shown(source)}") from None

    def begin(self) -> Iterator[Any]:
        """The batches of an epoch. The first epoch goes on with the iterator whose first batch was looked at."""
        iterator, self._iterator = self._iterator, None
        return self._begin() if iterator is None else iterator

    def piece(self, batch: Any) -> Piece:
        """A batch as arrays with a row per sample; Y is still as it was given."""
        if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
            raise ValueError(f"batches: expected tuples (X, Y) or (X, Y, sample_weight); got {shown(batch)}")
        X, Y = _array(batch[0], "X"), _array(batch[1], "Y")
        weight = _array(batch[2], "sample_weight").reshape(-1, 1) if len(batch) == 3 else None
        if X.ndim != 2 or Y.ndim not in (1, 2):
            raise ValueError(f"batches: expected X of 2 axes and Y of 1 or 2; got shapes {X.shape}, {Y.shape}")
        if not self._rows:
            X, Y = X.T, Y.T
        for name, x in (("Y", Y), ("sample_weight", weight)):
            if x is not None and len(x) != len(X):
                hint = "" if self._rows else ". A column is a sample; rows=True is for batches with a row per sample"
                raise ValueError(f"batches: {name}: expected {len(X)} samples, as X has; got {len(x)}{hint}")
        return Piece(X, Y[:, None] if Y.ndim == 1 else Y, weight)

    def description(self) -> dict[str, Any]:
        return {"batches": type(self._source).__qualname__, "inputs": self.n_inputs, "window": self.window_bytes}


class BatchReading(Reading[Piece]):
    """The samples of an epoch of a `BatchStream`.

    Parameters
    ----------
    stream : BatchStream
    first : int
        The sample to begin with; those before are read and left out.
    check : callable
        ``check(room, name)`` looks at samples that were read.
    """

    waits_for_others = True

    def __init__(self, stream: BatchStream, first: int, check: Callable[..., None]) -> None:
        self._stream, self._batches, self._check = stream, stream.begin(), check
        self._left: Piece | None = None
        self._skip, self._done = first, 0

    def fill(self, room: Piece, size: int, go_on: Callable[[], bool]) -> int:
        most = size
        if self._stream.m is not None:
            size = min(size, self._stream.m - self._done - self._skip)
        count = 0
        while count < size and go_on():
            piece = self._next()
            if piece is None:
                break
            skipped = min(self._skip, len(piece.X))
            self._skip, self._done = self._skip - skipped, self._done + skipped
            used = min(size - count, len(piece.X) - skipped)
            if used:
                self._write(piece.part(skipped, skipped + used), room.part(count, count + used))
            self._left = piece.part(skipped + used, len(piece.X)) if skipped + used < len(piece.X) else None
            count, self._done = count + used, self._done + used
        self._check_end(count < most and go_on())
        return count

    def _next(self) -> Piece | None:
        if self._left is not None:
            piece, self._left = self._left, None
            return piece
        batch = next(self._batches, None)
        return None if batch is None else self._stream.piece(batch)

    def _write(self, piece: Piece, room: Piece) -> None:
        if piece.X.shape[1] != room.X.shape[1]:
            raise ValueError(
                f"batches: X: expected {room.X.shape[1]} inputs; got {piece.X.shape[1]} after {self._done} samples"
            )
        if (piece.weight is None) != (room.weight is None):
            has = "weights" if room.weight is not None else "none"
            raise ValueError(f"batches: sample_weight: the first batch has {has}; expected the same of all batches")
        with np.errstate(over="ignore"):  # what overflows is not finite, and is found with the others
            np.copyto(room.X, piece.X, casting="unsafe")
        write_targets(piece.Y, room.Y, self._stream.classes, "batches: Y")
        if room.weight is not None and piece.weight is not None:
            np.copyto(room.weight, piece.weight, casting="unsafe")
        self._check(room, lambda row: f"sample {self._done + row} of the epoch")

    def _check_end(self, ended: bool) -> None:
        """See that an epoch that has ended has as many samples as the first."""
        stream = self._stream
        if not ended:
            return
        if self._skip or (stream.m is not None and self._done < stream.m):
            expected = self._done + self._skip if stream.m is None else stream.m
            raise ValueError(f"batches: expected {expected} samples in an epoch; the iterator ended after {self._done}")
        if stream.m is not None and not stream.cut and self._next() is not None:
            raise ValueError(f"batches: expected {stream.m} samples, as in the first epoch; the iterator has more")


def _array(x: Any, name: str) -> np.ndarray:
    if is_sparse(x):
        x = x.toarray()
    try:
        x = np.asarray(x)
    except Exception as error:  # whatever another library's __array__ raises
        raise ValueError(f"batches: {name}: expected an array of numbers; got {type(x).__name__} ({error})") from None
    if x.dtype.kind not in "fiub":
        raise ValueError(f"batches: {name}: expected real numbers; got an array of dtype {x.dtype}")
    return x
