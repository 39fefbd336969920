"""Stream: samples that are read piece by piece. A row is a sample here, as it is in files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np

from fusedmlp.checks import check_count
from fusedmlp.model.architecture import Architecture

BLOCK_BYTES = 2**20
"""Contiguous samples that are read at once: so many that a disk reads them as fast as it can."""
WINDOW_BYTES = 2**26
"""Samples that are in memory at once, twice: one part is trained on while the next one is read."""


class Piece(NamedTuple):
    """Room for some samples.

    Attributes
    ----------
    X : numpy.ndarray of shape (k, n1)
    Y : numpy.ndarray of shape (k, nL)
    weight : numpy.ndarray of shape (k, 1), or None
    """

    X: np.ndarray
    Y: np.ndarray
    weight: np.ndarray | None

    def part(self, start: int, stop: int) -> Piece:
        """Some of the rows, as views."""
        return Piece(*(None if x is None else x[start:stop] for x in self))  # type: ignore[arg-type]


class Stream(ABC):
    """Samples that `Network.fit` reads while it trains.

    Attributes
    ----------
    n_inputs : int
    m : int or None
        The number of samples; None where only the end of the first epoch tells it.
    weighted : bool
        Whether samples have weights.
    window_bytes : int
        The size of the samples that are in memory at once, twice.
    """

    n_inputs: int
    m: int | None
    weighted: bool
    window_bytes: int

    def for_network(self, architecture: Architecture) -> Stream:
        """The stream as a network reads it: itself, unless it has to be brought into another form first."""
        return self

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """What the samples and their order depend on, as plain data: a checkpoint compares it."""


class BlockStream(Stream):
    """A stream whose samples are numbered, and lie in blocks that can be read in any order.

    Attributes
    ----------
    edges : numpy.ndarray of shape (blocks + 1,), int64
        Block b has the samples from edges[b] to edges[b + 1].
    """

    _edges: np.ndarray
    m: int

    @property
    def edges(self) -> np.ndarray:
        return self._edges

    @abstractmethod
    def read(self, start: int, stop: int, room: Piece) -> None:
        """Write the samples from `start` to `stop`, which lie in one block, into `room`, in its dtype.

        Raises
        ------
        ValueError, OSError
            They cannot be read.
        """

    @abstractmethod
    def weights(self) -> np.ndarray | None:
        """The weights of all samples, shape (m,); None where they have none."""

    def where(self, sample: int) -> str:
        """A sample, for messages."""
        return f"sample {sample}"

    def announce(self, start: int, stop: int) -> None:
        """The samples from `start` to `stop`, of one block, will be read soon."""

    def in_place(self, architecture: Architecture, converts: bool) -> Piece | None:
        """All samples as arrays that an engine can read by itself; None where they have to be copied.

        Parameters
        ----------
        architecture : Architecture
        converts : bool
            Whether the engine takes an X of the other floating-point type.
        """
        return None

    def place(self, start: int) -> int:
        """The row of a sample in the arrays of `in_place`; the samples of a block follow each other."""
        return start

    def fetch(self, start: int, stop: int) -> None:
        """Wait until samples that are read in place are in memory."""


class BlocksOf(BlockStream):
    """Some blocks of a stream, as a stream of their own.

    Parameters
    ----------
    stream : BlockStream
    blocks : numpy.ndarray of int
    """

    def __init__(self, stream: BlockStream, blocks: np.ndarray) -> None:
        self._stream, self._firsts = stream, stream.edges[:-1][blocks]
        sizes = np.diff(stream.edges)[blocks]
        self._edges = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
        self.n_inputs, self.m, self.weighted = stream.n_inputs, int(self._edges[-1]), stream.weighted
        self.window_bytes, self._blocks = stream.window_bytes, blocks

    def _there(self, sample: int) -> int:
        """The number that a sample has in the whole stream."""
        block = int(np.searchsorted(self._edges, sample, side="right")) - 1
        return int(self._firsts[block]) + sample - int(self._edges[block])

    def read(self, start: int, stop: int, room: Piece) -> None:
        first = self._there(start)
        self._stream.read(first, first + stop - start, room)

    def announce(self, start: int, stop: int) -> None:
        first = self._there(start)
        self._stream.announce(first, first + stop - start)

    def in_place(self, architecture: Architecture, converts: bool) -> Piece | None:
        return self._stream.in_place(architecture, converts)

    def place(self, start: int) -> int:
        return self._stream.place(self._there(start))

    def fetch(self, start: int, stop: int) -> None:
        first = self._there(start)
        self._stream.fetch(first, first + stop - start)

    def weights(self) -> np.ndarray | None:
        weights = self._stream.weights()
        if weights is None:
            return None
        parts = zip(self._firsts.tolist(), np.diff(self._edges).tolist(), strict=True)
        return np.concatenate([weights[first : first + size] for first, size in parts])

    def where(self, sample: int) -> str:
        return self._stream.where(self._there(sample))

    def description(self) -> dict[str, Any]:
        return self._stream.description() | {"blocks": self._blocks.tolist()}


class Sizes(NamedTuple):
    """How a stream is cut; both can be chosen where a stream is made."""

    block_bytes: int = BLOCK_BYTES
    window_bytes: int = WINDOW_BYTES

    def check(self) -> Sizes:
        """These sizes, if they are counts."""
        return Sizes(check_count("block_bytes", self.block_bytes), check_count("window_bytes", self.window_bytes))


def block_edges(samples: int, sample_bytes: int, block_bytes: int, first: int = 0) -> np.ndarray:
    """The edges of blocks of about so many bytes; `first` is the number of the first sample. Without the last edge."""
    step = max(1, block_bytes // max(1, sample_bytes))
    return np.arange(first, first + samples, step, dtype=np.int64)
