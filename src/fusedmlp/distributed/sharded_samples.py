"""ShardedSamples: samples that lie in several processes, numbered through from rank 0 on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fusedmlp.distributed.peers import Peers
from fusedmlp.engines.base import Engine
from fusedmlp.engines.feeding import HostMatrix
from fusedmlp.engines.options import BatchParts
from fusedmlp.engines.primitives import Primitives
from fusedmlp.engines.samples import Samples, as_samples
from fusedmlp.engines.sparse import is_sparse
from fusedmlp.model.architecture import Architecture
from fusedmlp.model.losses import loss_named
from fusedmlp.model.parameters import Parameters

_PIECE = 1 << 15


@dataclass(frozen=True)
class Numbering:
    """Which of the samples of all processes are here.

    Attributes
    ----------
    total : int
        The samples of all processes.
    first, count : int
        The number of the first column of X here among the samples of all, and how many columns there are.
    places : numpy.ndarray of shape (total,), int64, optional
        Where the samples are a part: what `columns` gives for each.
    names : numpy.ndarray of int64, optional
        The number of each column that dropout's masks are drawn by, where it is not its own plus `first`.
    """

    total: int
    first: int
    count: int
    places: np.ndarray | None = None
    names: np.ndarray | None = None

    def columns(self, order: np.ndarray) -> np.ndarray:
        """The column here of each sample of an order; a number that `is_here` refuses for one in another process."""
        if self.places is not None:
            return np.asarray(self.places[order])
        return np.asarray(order, np.int64) - self.first

    def is_here(self, columns: np.ndarray) -> np.ndarray:
        """Whether each of these is a column of X here."""
        return columns.view(np.uint64) < self.count  # a negative number is a large one

    def part(self, samples: np.ndarray, renamed: bool) -> Numbering:
        """That of some of the samples, which get new numbers; with `renamed`, dropout's masks go by those."""
        places = self.columns(samples)
        names = self.names
        if renamed:
            names = np.zeros(self.count, np.int64)
            here = np.flatnonzero(self.is_here(places))
            names[places[here]] = here
        return Numbering(len(samples), self.first, self.count, places, names)

    def all_here(self) -> np.ndarray:
        """The columns of X here of all samples that are here, in their order."""
        return np.arange(self.count) if self.places is None else self.places[self.is_here(self.places)]

    def parts(self, order: np.ndarray | None, batch_size: int) -> tuple[np.ndarray | None, BatchParts]:
        """The columns here of an epoch's samples, in its order; and which of them belong to which batch."""
        total = self.total if order is None else len(order)
        edges = np.append(np.arange(0, total, batch_size), total)
        names = np.arange(self.first, self.first + self.count) if self.names is None else self.names
        if self.places is None and order is None:
            return None, BatchParts(np.clip(edges - self.first, 0, self.count), total, names)
        columns, here = self._found(np.arange(total) if order is None else order)
        return columns, BatchParts(np.searchsorted(here, edges), total, names)

    def _found(self, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(the columns here of those samples of an order that are here, their places in the order).

        A piece at a time, which stays in the cache: every process looks at the orders of all samples.
        """
        columns, here = [], []
        for start in range(0, len(order), _PIECE):
            piece = self.columns(order[start : start + _PIECE])
            found = np.flatnonzero(self.is_here(piece))
            columns.append(piece[found])
            here.append(found + start)
        return np.concatenate(columns), np.concatenate(here)


class ShardedSamples(Samples):
    """The samples of all processes. Orders and parts are those of all; X, Y and weights are those here.

    Parameters
    ----------
    peers : Peers
    samples : Samples
        Those of this process, perhaps none.
    numbering : Numbering

    Attributes
    ----------
    m : int
        The samples of all processes, like all sums.
    """

    def __init__(self, peers: Peers, samples: Samples, numbering: Numbering) -> None:
        super().__init__(samples.X, samples.Y, samples.sample_weight)
        self._peers, self.numbering = peers, numbering
        columns = numbering.all_here()
        weight = self.sample_weight
        self._weight_here = float(len(columns)) if weight is None else _sum_of(weight, columns)
        positive = len(columns) if weight is None else _sum_of(weight, columns, positive=True)
        self._weight_of_all, self._with_weight = peers.total(self._weight_here, positive)
        self._here = len(columns)

    @property
    def m(self) -> int:
        return self.numbering.total

    @property
    def weight_sum(self) -> float:
        return self._weight_of_all

    def with_weight(self) -> int:
        return int(self._with_weight)

    def ordered(self, order: np.ndarray | None) -> np.ndarray | None:
        """The columns here of the samples in an order, without those of other processes."""
        if order is None:
            return None if self.numbering.places is None else self.numbering.all_here()
        columns = self.numbering.columns(order)
        return columns[self.numbering.is_here(columns)]

    def batches(self, order: np.ndarray | None, batch_size: int) -> tuple[np.ndarray | None, BatchParts | None]:
        return self.numbering.parts(order, batch_size)

    def take(self, columns: np.ndarray, largest_copy: int | None) -> ShardedSamples:
        """Some of the samples; nothing is copied.

        Dropout's masks go by new numbers where one process would copy the samples: it draws the same ones.
        """
        copied = self._bytes_of_all() <= (largest_copy or 0) and not isinstance(self.X, HostMatrix)
        return ShardedSamples(self._peers, self._own(), self.numbering.part(columns, copied))

    def prepared(self, engine: Engine) -> ShardedSamples:
        return ShardedSamples(self._peers, self._own().prepared(engine), self.numbering)

    def loss(self, engine: Engine, parameters: Parameters) -> float:
        """Σ wᵢ jᵢ / Σ wᵢ over the samples of all processes; Σ wᵢ jᵢ for a loss that is a sum."""
        mean = loss_named(engine.architecture.loss).reduction == "mean"
        here = super().loss(engine, parameters) if self._weight_here else 0.0
        total = self._peers.total(here * self._weight_here if mean else here)[0]
        return total / self.weight_sum if mean else total

    def _own(self) -> Samples:
        return Samples(self.X, self.Y, self.sample_weight)

    def _bytes_of_all(self) -> int:
        return int(self._peers.total(float(self.X.nbytes))[0])


def _sum_of(weight: Any, columns: np.ndarray, positive: bool = False) -> float:
    """Σ wᵢ of some samples, or the number of weights that are not 0; of none it is 0."""
    if isinstance(weight, HostMatrix):
        weight = weight.columns()
    some = weight[:, columns]
    return float((some > 0).sum() if positive else some.sum(dtype=np.float64))


def sharded_samples(
    peers: Peers,
    data: tuple[Any, Any, Any],
    architecture: Architecture,
    backend: Primitives,
    prefix: str = "",
    *,
    shards: bool,
) -> ShardedSamples:
    """The samples of all processes, checked.

    Parameters
    ----------
    peers : Peers
    data : tuple (X, Y, sample_weight or None)
    architecture : Architecture
    backend : Primitives
    prefix : str
        As in `as_samples`.
    shards : bool
        Whether each process has other samples; else all have the same ones, and each takes a part of them.

    Raises
    ------
    ValueError
        As `as_samples`, in all processes; there are no samples, or no weights above 0.
    """

    def own() -> Samples:
        X, Y, weight = data if shards else _slices(data, peers.rank, peers.size)
        if X.shape[-1] == 0 and X.ndim == 2:
            return _no_samples(X, weight, architecture, backend, prefix)
        return as_samples(X, Y, weight, architecture, backend, prefix, part=True)

    samples = peers.together(own)
    counts = peers.counts(samples.m)
    if not sum(counts):
        raise peers.shared(ValueError(f"{prefix}X: expected at least one sample on any rank; got none"))
    numbering = Numbering(sum(counts), sum(counts[: peers.rank]), counts[peers.rank])
    sharded = ShardedSamples(peers, samples, numbering)
    if sharded.weight_sum == 0:
        raise peers.shared(ValueError(f"{prefix}sample_weight: expected at least one weight > 0 on any rank"))
    return sharded


def as_matrix(x: Any) -> Any:
    """None, an array or a sparse matrix as it is, anything else as an array of numpy's."""
    return x if x is None or is_sparse(x) or hasattr(x, "__array_interface__") or hasattr(x, "get") else np.asarray(x)


def _slices(data: tuple[Any, Any, Any], rank: int, size: int) -> tuple[Any, Any, Any]:
    """The rank's part of samples that all ranks have: as many for each, up to one."""
    X, Y, weight = (as_matrix(x) for x in data)
    m = X.shape[-1]
    here = slice(m * rank // size, m * (rank + 1) // size)
    if is_sparse(X):
        X = X.tocsc()
    for name, x in (("Y", Y), ("sample_weight", weight)):
        if x is not None and x.shape[-1:] != (m,):
            raise ValueError(f"{name}: expected {m} samples along the last axis, as X has; got shape {x.shape}")
    return X[:, here], Y[..., here], None if weight is None else weight[..., here]


def _no_samples(X: Any, weight: Any, architecture: Architecture, backend: Primitives, prefix: str) -> Samples:
    """What a process has that has no samples."""
    a, xp = architecture, backend.xp
    if X.shape[0] != a.n_inputs:
        raise ValueError(f"{prefix}X: expected shape (n1={a.n_inputs}, m) with a column per sample; got {X.shape}")
    empty = [xp.zeros((rows, 0), a.dtype) for rows in (a.n_inputs, a.n_outputs, 1)]
    return Samples(empty[0], empty[1], None if weight is None else empty[2])
