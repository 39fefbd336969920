"""The batches of an epoch: which samples, where they are taken from, and dropout's masks of them."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from fusedmlp.engines.chunking import Chunking, slices
from fusedmlp.engines.feeding import HostMatrix
from fusedmlp.engines.options import EpochOptions
from fusedmlp.model.activations import Array
from fusedmlp.model.dropout import Dropout, factors


class Batch(NamedTuple):
    """The samples of one optimizer step.

    Attributes
    ----------
    matrices : list of array of the backend, or `HostMatrix`
        X, Y and sample_weight, or None for no weights.
    size : int
    total_weight : float
        Σ wᵢ; the number of samples where there are no weights.
    samples : array of int of shape (size,), optional
        The columns of the matrices that belong to the batch; None: all of them.
    """

    matrices: Sequence[Array | None]
    size: int
    total_weight: float
    samples: Array | None = None


@dataclass
class Epoch:
    """An epoch's X, Y and sample_weight, and how far it has come.

    `order` is where the samples are gathered from, on the device; `columns` the columns of X that the samples came
    from, by which dropout's masks are drawn (None: as they lie). `done` counts samples and `batch` batches. A pass ends
    before sample `end`, or, where the batches lie in several processes, before the batch of the options' position.
    """

    matrices: list[Array | None]
    order: Array | None
    columns: Array | None
    m: int
    end: int
    batch_size: int
    options: EpochOptions
    done: int = 0
    total: Array | float = 0.0
    batch: int = 0

    @property
    def samples(self) -> int:
        """The samples of the epoch, those of other processes included."""
        return self.m if self.options.parts is None else self.options.parts.samples


class Masks(NamedTuple):
    """Dropout's masks of a chunk: which step it is, and the columns that its samples have in X."""

    xp: Any
    dropout: Dropout
    step: int
    columns: Array

    def factors(self, layer: int, A: Array) -> Array | None:
        """What A_layer is multiplied by, of its shape and dtype; None where the layer drops nothing."""
        if not self.dropout.rates[layer]:
            return None
        return factors(self.xp, self.dropout, layer, A.shape[0], self.columns, self.step, A.dtype)

    def of(self, chunk: slice) -> Masks:
        """The masks of some of the samples."""
        return self._replace(columns=self.columns[chunk])


class Batching(Chunking):
    """How an engine of chunks goes through the batches of an epoch."""

    def _batches(self, epoch: Epoch) -> Generator[Batch]:
        """From `epoch.done` on. One transfer from host memory serves as many whole batches as fit into a chunk."""
        split, position = epoch.options.parts, epoch.options.position
        if split is not None:
            end = None if position is None or position.end is None else position.end + 1
            for start, stop in pairwise(split.starts[epoch.batch : end].tolist()):
                yield self._batch(epoch, slice(start, stop))
            return
        whole = self._chunk // epoch.batch_size * epoch.batch_size
        X, _, weight = epoch.matrices
        if whole == 0 or not isinstance(X, HostMatrix):
            for samples in slices(epoch.done, epoch.end, epoch.batch_size):
                yield self._batch(epoch, samples)
            return
        with self._parts(epoch.matrices, slices(epoch.done, epoch.end, whole)) as parts:
            for group, part in parts:
                for samples in slices(group.start, group.stop, epoch.batch_size):
                    # Summed where the weights lie: the device need not be waited for.
                    total_weight = self._total_weight(epoch, None if weight is None else weight.take(samples), samples)
                    here = slice(samples.start - group.start, samples.stop - group.start)
                    yield Batch(self._take_all(part, here), samples.stop - samples.start, total_weight)

    def _batch(self, epoch: Epoch, samples: slice) -> Batch:
        """The samples of a step; copies hold until the next batch. More samples than a chunk has are not taken yet."""
        size = samples.stop - samples.start
        X, _, weight = epoch.matrices
        if isinstance(X, HostMatrix):
            taken = [x if x is None else x.take(samples) for x in epoch.matrices]
        elif epoch.order is None or size <= self._chunk:
            taken = self._take_all(epoch.matrices, samples if epoch.order is None else epoch.order[samples])
        else:
            chosen = epoch.order[samples]
            total_weight = self._total_weight(epoch, None if weight is None else weight[:, chosen], samples)
            return Batch(epoch.matrices, size, total_weight, chosen)
        return Batch(taken, size, self._total_weight(epoch, taken[2], samples))

    def _total_weight(self, epoch: Epoch, sample_weight: Array | None, samples: slice) -> float:
        """Σ wᵢ of a batch, where something depends on it: a device has to be waited for."""
        options = epoch.options
        needed = options.mean_weight is None or options.gradient_phase is not None or options.penalty_by_weight
        if not needed:
            return float(samples.stop - samples.start)
        return float(sum_of_weights(sample_weight, samples.stop - samples.start))


def sum_of_weights(sample_weight: Array | None, m: int) -> Array | float:
    """Σ wᵢ in float64, still on the device; m where there are no weights."""
    return m if sample_weight is None else sample_weight.sum(dtype=np.float64)
