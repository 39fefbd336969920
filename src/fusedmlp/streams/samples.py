"""StreamedSamples: the samples of a stream, with the interface of `Samples`. They are checked as they are read."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np

from fusedmlp.engines.base import Engine
from fusedmlp.engines.feeding import all_finite
from fusedmlp.engines.options import EpochOptions, EpochPosition
from fusedmlp.engines.primitives import Primitives
from fusedmlp.engines.samples import Samples
from fusedmlp.engines.windows import Windows, window_samples
from fusedmlp.model.architecture import Architecture
from fusedmlp.model.losses import loss_named
from fusedmlp.model.optimizers import OptimizerState
from fusedmlp.model.parameters import Parameters
from fusedmlp.streams.access import Access, Copies, InPlace
from fusedmlp.streams.base import BlocksOf, BlockStream, Piece, Stream
from fusedmlp.streams.batches import BatchStream

_COMPARED = 32
"""Samples whose numbers tell whether the data are those of a checkpoint."""


class Seeded(NamedTuple):
    """The order of an epoch: all of it follows from a seed; None: as the samples lie."""

    seed: int | None


class StreamedSamples(Samples):
    """The samples of a stream, in windows.

    Parameters
    ----------
    stream : Stream
    architecture : Architecture
    backend : Primitives
    prefix : str
        A prefix of the arguments' names in error messages.

    Raises
    ------
    ValueError
        The stream has another number of inputs or outputs than the network, or its weights cannot be used.

    Attributes
    ----------
    m : int
        0 as long as nobody knows.
    """

    unit = "blocks"

    def __init__(self, stream: Stream, architecture: Architecture, backend: Primitives, prefix: str = "") -> None:
        super().__init__(None, None)
        if stream.n_inputs != architecture.n_inputs:
            raise ValueError(f"{prefix}X: expected {architecture.n_inputs} inputs; the stream has {stream.n_inputs}")
        outputs = getattr(stream, "n_outputs", (architecture.n_outputs,))
        if architecture.n_outputs not in outputs:
            expected = " or ".join(map(str, outputs))
            raise ValueError(
                f"{prefix}Y: the stream is for {expected} outputs; the network has {architecture.n_outputs}"
            )
        stream = stream.for_network(architecture)
        self.stream, self._architecture, self._backend, self._prefix = stream, architecture, backend, prefix
        self._loss = loss_named(architecture.loss)
        self.once = isinstance(stream, BatchStream) and stream.once
        self._weight_sum, self._with_weight = self._sum_weights()

    # What a training asks for ----------------------------------------------------------------------------------------

    @property
    def m(self) -> int:
        return self.stream.m or 0

    @property
    def units(self) -> int:
        if not isinstance(self.stream, BlockStream):
            raise ValueError("validation_fraction: expected 0 with an iterable of batches; pass validation_data")
        return len(self.stream.edges) - 1

    @property
    def weight_sum(self) -> float:
        return float(self.m) if self._weight_sum is None else self._weight_sum

    @property
    def mean_weight(self) -> float | None:
        """Σ wᵢ / m; None where there are no weights, and where nobody knows them before they are read."""
        return None if self._weight_sum is None else self._weight_sum / self.m

    def with_weight(self) -> int:
        return self.m if self._with_weight is None else self._with_weight

    def take(self, columns: np.ndarray, largest_copy: int | None) -> StreamedSamples:
        """Some of the blocks."""
        assert isinstance(self.stream, BlockStream)
        part = BlocksOf(self.stream, np.sort(columns))
        return StreamedSamples(part, self._architecture, self._backend, self._prefix)

    def prepared(self, engine: Engine) -> StreamedSamples:
        return self

    def draw_order(self, generator: np.random.Generator | np.random.RandomState) -> Seeded:
        return Seeded(int.from_bytes(generator.bytes(8), "little"))

    def is_over(self, position: EpochPosition, batch_size: int) -> bool:
        return self.m > 0 and super().is_over(position, batch_size)

    def train(
        self,
        engine: Engine,
        parameters: Parameters,
        optimizer_state: OptimizerState,
        order: Seeded | None,
        batch_size: int,
        options: EpochOptions,
    ) -> None:
        """The batches of an epoch, from the position of `options` on."""
        position = options.position or EpochPosition()
        seed = None if order is None else order.seed
        size = self._window(batch_size)
        windows = Windows(position, batch_size, size, self._loss.reduction == "mean")
        number = windows.first
        done = number * size
        try:
            if not self.is_over(position, batch_size) and not windows.over(number):
                with closing(self._access.windows(size, done, seed, options.poll)) as parts:
                    for part, count in parts:
                        samples = self._access.samples(part, count)
                        given = (parameters, optimizer_state, *samples, batch_size)
                        windows.run(number, count, partial(_train, engine, options, given))
                        number, done = number + 1, done + count
                        if windows.over(number):
                            return
                self.stream.m = self.stream.m or done
        finally:
            if self.is_over(position, batch_size):
                windows.finish(self.m)

    def loss(self, engine: Engine, parameters: Parameters) -> float:
        """As that of `Samples`; NaN where the stream can be read only once."""
        if self.once:
            return math.nan
        total, weight = 0.0, 0.0
        size = self._window(1)
        with closing(self._access.windows(size, 0, None)) as parts:
            for part, count in parts:
                X, Y, weights, order = self._access.samples(part, count)
                samples = Samples(X, Y, weights, order)
                here = samples.weight_sum
                if here:
                    J = samples.loss(engine, parameters)
                    total += J * here if self._loss.reduction == "mean" else J
                weight += here
        return total / weight if self._loss.reduction == "mean" else total

    # Reading ---------------------------------------------------------------------------------------------------------

    def _window(self, batch_size: int) -> int:
        """The samples of a window."""
        a = self._architecture
        size = window_samples((a.n_inputs + a.n_outputs + 1) * a.itemsize, batch_size, self.stream.window_bytes)
        return min(size, -(-self.m // batch_size) * batch_size) if self.m else size

    @cached_property
    def _access(self) -> Access:
        """How an engine gets the samples."""
        stream, a, backend = self.stream, self._architecture, self._backend
        if isinstance(stream, BlockStream) and backend.xp is np:
            arrays = stream.in_place(a, backend.converts_by_tile)
            if arrays is not None:
                return InPlace(stream, arrays, self._check)
        return Copies(stream, a, backend.xp is np, self._check)

    def _check(self, room: Piece, name: Callable[[int], str]) -> None:
        """See that samples that were read can be trained on; `name` says which one a row is."""
        for argument, x in (("X", room.X), ("Y", room.Y), ("sample_weight", room.weight)):
            if x is not None and not all_finite(np, x):
                row, column = (int(i) for i in np.argwhere(~np.isfinite(x))[0])
                expected = f"{self._prefix}{argument}: expected finite numbers of {x.dtype}"
                raise ValueError(f"{expected}; got {x[row, column]} in {name(row)}")
        valid = self._loss.valid_targets(np, room.Y.T)
        if not bool(valid.all()):
            row = int(np.flatnonzero(~np.atleast_2d(valid).all(axis=0))[0])
            got = room.Y[row].tolist()
            raise ValueError(
                f"{self._prefix}Y: {self._loss.name} expects {self._loss.targets}; got "
                f"{got[0] if len(got) == 1 else got} in {name(row)}"
            )
        if room.weight is not None and room.weight.size and room.weight.min() < 0:
            row = int(room.weight[:, 0].argmin())
            raise ValueError(
                f"{self._prefix}sample_weight: expected numbers >= 0; got {room.weight[row, 0]} in {name(row)}"
            )

    # Before the training ---------------------------------------------------------------------------------------------

    def _sum_weights(self) -> tuple[float | None, int | None]:
        """(Σ wᵢ, how many weights are not 0), or None for each where that is not known before they are read."""
        weights = self.stream.weights() if isinstance(self.stream, BlockStream) else None
        if weights is None:
            return None, None
        if not all_finite(np, weights) or weights.min() < 0:
            raise ValueError(f"{self._prefix}sample_weight: expected finite numbers >= 0")
        if not weights.any():
            raise ValueError(f"{self._prefix}sample_weight: expected at least one weight > 0; all are 0")
        return float(weights.sum(dtype=np.float64)), int((weights > 0).sum())

    def description(self) -> dict[str, Any]:
        """What a checkpoint compares: the stream's own description, and a checksum over some samples."""
        stream, a = self.stream, self._architecture
        data = stream.description()
        if isinstance(stream, BlockStream):
            digest = hashlib.sha256()
            room = Piece(np.empty((1, a.n_inputs), a.dtype), np.empty((1, a.n_outputs), a.dtype), None)
            for sample in np.unique(np.linspace(0, stream.m - 1, _COMPARED).astype(np.int64)).tolist():
                stream.read(sample, sample + 1, room)
                digest.update(room.X.tobytes() + room.Y.tobytes())
            data["sha256"] = digest.hexdigest()[:16]
        return data


def _train(engine: Engine, options: EpochOptions, given: tuple[Any, ...], position: EpochPosition) -> None:
    engine.train_epoch(*(*given, replace(options, position=position)))
