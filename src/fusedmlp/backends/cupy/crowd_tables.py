"""What a crowd's stretches have in device memory: orders, rates, and what comes of them."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fusedmlp.backends.cupy.captured_engine import CapturedEngine
from fusedmlp.backends.cupy.gpu_primitives import GpuPrimitives
from fusedmlp.backends.cupy.resident import (
    JOB_DTYPE,
    RECORD_DTYPE,
    address_of,
    write_job,
    write_source,
)
from fusedmlp.engines.crowd import End, Stretch
from fusedmlp.engines.samples import Samples
from fusedmlp.model.activations import Array

_TABLES = _RATES, _LOSSES, _VALIDATION_LOSSES, _NANOSECONDS = range(4)


class Job(NamedTuple):
    """A stretch as the kernel takes it, and the batches of all of its epochs, those of the validation included."""

    record: Any
    batches: int


class CrowdTables:
    """The tables of some stretches. All orders are uploaded together, and so is everything else of an epoch's.

    Parameters
    ----------
    backend : GpuPrimitives
    stretches : sequence of Stretch
    columns : mapping of Samples to array
        Parts of samples, as columns of X, that are on the GPU already; others are added.
    """

    def __init__(
        self, backend: GpuPrimitives, stretches: Sequence[Stretch], columns: MutableMapping[Samples, Array]
    ) -> None:
        self._backend, self._stretches, self._columns = backend, stretches, columns
        cupy = backend.xp
        self._epochs = _starts([stretch.epochs for stretch in stretches])
        tables = np.zeros((len(_TABLES), self._epochs[-1]))
        tables[_RATES] = [rate for stretch in stretches for rate in stretch.rates]
        self._tables = cupy.empty(tables.shape, "float64")
        self._tables.set(tables)
        orders = [np.empty(0, np.int64) if each.orders is None else each.orders.reshape(-1) for each in stretches]
        self._orders = _starts([len(order) for order in orders])
        self._order = cupy.empty((self._orders[-1],), "int64")
        if len(self._order):
            self._order.set(np.concatenate(orders))
        records = np.zeros(len(stretches), RECORD_DTYPE)
        records["best_loss"] = [stretch.best.loss for stretch in stretches]
        records["epochs_since"] = [stretch.best.epochs_since for stretch in stretches]
        records["best_epoch"] = -1
        self._records = cupy.empty((len(stretches), RECORD_DTYPE.itemsize // 8), "int64")
        self._records.set(records.view(np.int64).reshape(self._records.shape))
        # The best weights of an estimator are in host memory.
        self._best = [backend.asarray(stretch.best.weights) for stretch in stretches]
        self._batches: dict[int, tuple[int, int]] = {}
        # A view for each of the networks would take longer than all else.
        self._begins = tuple(map(address_of, (self._tables, self._order, self._records)))

    def job(self, number: int, tile: int) -> Job:
        """A stretch's job, without the batches of a launch; a tile has so many samples."""
        stretch = self._stretches[number]
        engine, train, validation = stretch.engine, stretch.train, stretch.validation
        assert isinstance(engine, CapturedEngine)
        job = np.zeros(1, JOB_DTYPE)[0]
        write_job(job, stretch.parameters.flat, stretch.optimizer_state, engine.loss_is_mean, stretch.options)
        size = min(stretch.batch_size, train.m)
        at_tables, at_orders, at_records = self._begins
        order, step = at_orders + 8 * self._orders[number], train.m
        if stretch.orders is None:
            order, step = self._columns_of(train), 0
        write_source(job["train"], (train.X, train.Y, train.sample_weight), train.m, size, order, step)
        if validation is not None:
            arrays = validation.X, validation.Y, validation.sample_weight
            write_source(job["validation"], arrays, validation.m, max(size, tile), self._columns_of(validation))
        for table, name in enumerate(("rates", "losses", "validation_losses", "nanoseconds")):
            job[name] = at_tables + 8 * (table * self._epochs[-1] + self._epochs[number])
        job["record"] = at_records + RECORD_DTYPE.itemsize * number
        job["best"] = address_of(self._best[number])
        job["patience"], job["tolerance"] = stretch.best.patience, stretch.best.tolerance
        self._batches[number] = int(job["train"]["batches"]), int(job["validation"]["batches"])
        return Job(job, stretch.epochs * sum(self._batches[number]))

    def write_down(self, done: Sequence[tuple[int, int]]) -> None:
        """What came of every stretch.

        Parameters
        ----------
        done : sequence of (int, int)
            For each stretch its number, and how many of its batches were launched.
        """
        tables = self._tables.get()
        records = self._records.get().view(RECORD_DTYPE).reshape(-1)
        for number, batches in done:
            stretch, record, first = self._stretches[number], records[number], self._epochs[number]
            epochs, best = int(record["epochs"]), stretch.best
            recorded = slice(first, first + epochs)
            stretch.losses = tables[_LOSSES, recorded].tolist()
            stretch.seconds = (tables[_NANOSECONDS, recorded] * 1e-9).tolist()
            if stretch.validation is not None:
                stretch.validation_losses = tables[_VALIDATION_LOSSES, recorded].tolist()
            best.loss, best.epochs_since = float(record["best_loss"]), int(record["epochs_since"])
            best.epoch = int(record["best_epoch"])
            if best.epoch >= 0 and not self._backend.owns(best.weights):
                best.weights[...] = self._backend.to_numpy(self._best[number])
            self._end(number, End(int(record["end"])), epochs, batches)

    def _end(self, number: int, end: End, epochs: int, launched: int) -> None:
        """Why and where a stretch ended."""
        stretch, (steps, validations) = self._stretches[number], self._batches[number]
        stretch.begun, taken, stretch.end = epochs, epochs * steps, end
        if end is End.DONE and epochs < stretch.epochs:
            stretch.end = End.INTERRUPTED
            rest = launched - epochs * (steps + validations)
            stretch.begun += int(rest > 0)
            taken += min(rest, steps)
        stretch.optimizer_state.t += taken
        stretch.optimizer_state.learning_rate = stretch.rates[max(0, stretch.begun - 1)]

    def _columns_of(self, samples: Samples) -> int:
        """The address of the columns of X that these samples are; 0 where they are all of them."""
        if samples.order is None:
            return 0
        if samples not in self._columns:
            self._columns[samples] = self._backend.asarray(np.ascontiguousarray(samples.order, np.int64))
        return address_of(self._columns[samples])


def _starts(lengths: Sequence[int]) -> list[int]:
    """Where each of some parts begins that lie one after the other, and where the last one ends."""
    return [0, *np.cumsum(lengths).tolist()]
