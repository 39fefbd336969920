"""Jobs: the records by which compiled code trains many networks, and the memory of the workers that do them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from operator import is_
from typing import Any

import numpy as np

from fusedmlp.backends.numba_cpu.epochs import Epoch, step_tables
from fusedmlp.backends.numba_cpu.kernels import batch_ends
from fusedmlp.backends.numba_cpu.kernels.inputs import NONZEROS_BYTES
from fusedmlp.backends.numba_cpu.kernels.random_masks import HASH_BYTES
from fusedmlp.backends.numba_cpu.machine.buffers import AlignedArray, address_of
from fusedmlp.backends.numba_cpu.machine.job_records import JobRecord, ScratchRecord
from fusedmlp.backends.numba_cpu.machine.records import RunRecord, WorkerRecord, size_of, written
from fusedmlp.backends.numba_cpu.tiled_engine import TiledEngine
from fusedmlp.backends.numba_cpu.work_sizes import MOST_PIECES, MOST_SLOTS
from fusedmlp.backends.numba_cpu.workspaces import Workspaces
from fusedmlp.engines.crowd import End, Stretch
from fusedmlp.engines.samples import Samples
from fusedmlp.model.optimizers import RULES

# Within a longer epoch, Python has its turn between two tiles too.
_LONG_EPOCH_NS = 10_000_000
_STATE, _DONE, _STEPS, _STATE_SIZE = 0, 16, 32, 48


class Scratch:
    """A worker's memory: what a job needs between two of its batches is not kept for every network."""

    def __init__(self) -> None:
        self._state = AlignedArray(_STATE_SIZE, "int64")
        self._slot_sums = AlignedArray(2 * MOST_SLOTS, "float64")
        self._sums = AlignedArray(batch_ends.NORMS // 8 + MOST_PIECES, "float64")
        self._losses, self._slots, self._gradient = (AlignedArray(0, "float64") for _ in range(3))
        self._tiles = [AlignedArray(0, "int64") for _ in range(5)]

    def with_room(self, losses: int, slot_bytes: int, gradient_bytes: int) -> None:
        """See that there is memory for so many batches, and so many bytes of slots and of a gradient."""
        self._losses.with_room(losses)
        self._slots.with_room(-(-slot_bytes // 8))
        self._gradient.with_room(-(-gradient_bytes // 8))

    def with_tiles(self, workspaces: Workspaces) -> None:
        """See that there is memory for the tiles of an architecture."""
        layout = workspaces.layout
        sizes = layout.end, 8 * layout.tile, 8 * layout.tile, HASH_BYTES * layout.tile, NONZEROS_BYTES * layout.tile
        for block, size in zip(self._tiles, sizes, strict=True):
            block.with_room(-(-size // 8))

    def worker(self, number: int) -> WorkerRecord:
        """The worker that has this memory, for any architecture."""
        workspace, losses, sources, hashes, nonzeros = (block.address for block in self._tiles)
        return WorkerRecord(workspace, losses, sources, hashes, nonzeros, leader=int(number == 0))

    def record(self, number: int) -> AlignedArray:
        """The record of the worker of this number."""
        state = self._state.address
        places = (state + 8 * at for at in (_STATE, _DONE, _STEPS))
        blocks = self._slot_sums, self._sums, self._losses, self._slots, self._gradient
        return written(ScratchRecord(number, int(number == 0), *places, *(block.address for block in blocks)))


class Jobs:
    """The records of a series of stretches, and what they refer to.

    Parameters
    ----------
    stretches : sequence of Stretch
    workers : int
        The most that will do them.
    stop, poll : int
        As in `QueueRecord`.

    Attributes
    ----------
    addresses : AlignedArray
        Of the `JobRecord`s.
    nanoseconds : float
        About how long one worker takes for all.
    """

    def __init__(self, stretches: Sequence[Stretch], workers: int, stop: int, poll: int) -> None:
        self._stretches, self._stop, self._poll = list(stretches), stop, poll
        self._workers = AlignedArray(workers, "int64")
        self._kept: list[Any] = []
        self._tables: list[tuple[np.ndarray, np.ndarray]] = []
        self._sizes: list[float] = []
        self.nanoseconds = 0.0
        self._most_batches = self._slot_bytes = self._gradient_bytes = 1
        self._workspaces: dict[int, Workspaces] = {}
        runs, validations = [], []
        for stretch in stretches:
            runs.append(self._training_run(stretch))
            validations.append(None if stretch.validation is None else self._validation_run(stretch))
        run_table = written(*runs, *(run for run in validations if run is not None))
        addresses = iter(range(run_table.address, run_table.address + len(run_table.numbers) * 8, size_of(RunRecord)))
        run_addresses = [next(addresses) for _ in runs]
        jobs = [
            self._job(stretch, run, address, 0 if validation is None else next(addresses))
            for stretch, run, address, validation in zip(stretches, runs, run_addresses, validations, strict=True)
        ]
        self._records = written(*jobs)
        self.addresses = AlignedArray(len(jobs), "int64")
        self.addresses.numbers[:] = self._records.address + size_of(JobRecord) * _apart(self._sizes, workers)
        self._kept.append(run_table)

    def are_of(self, stretches: Sequence[Stretch]) -> bool:
        """Whether these are the stretches that the jobs were made for."""
        return len(stretches) == len(self._stretches) and all(map(is_, stretches, self._stretches))

    def let(self, scratch: Sequence[Scratch]) -> None:
        """Let workers with this memory do them; no other job may be using it."""
        for each in scratch:
            each.with_room(self._most_batches, self._slot_bytes, self._gradient_bytes)
            for workspaces in self._workspaces.values():
                each.with_tiles(workspaces)
        workers = [written(each.worker(number)) for number, each in enumerate(scratch)]
        self._workers.numbers[: len(workers)] = [worker.address for worker in workers]
        self._kept.append(workers)

    def _training_run(self, stretch: Stretch) -> RunRecord:
        """An epoch's run; what differs from epoch to epoch is in the job."""
        engine, train, options, state = stretch.engine, stretch.train, stretch.options, stretch.optimizer_state
        assert isinstance(engine, TiledEngine)
        a, sizes, batch_size = engine.architecture, engine.sizes, min(stretch.batch_size, train.m)
        batches = -(-train.m // batch_size)
        none = np.empty(0)
        epoch = Epoch(options, state, batches, none, none, none, steps=False)
        slots = sizes.slots_of(batch_size, train.X)
        self._most_batches = max(self._most_batches, batches)
        self._slot_bytes = max(self._slot_bytes, slots * a.n_parameters * a.itemsize)
        self._gradient_bytes = max(self._gradient_bytes, a.n_parameters * a.itemsize)
        nanoseconds = train.m * sizes.sample_ns_of(train.X)
        self.nanoseconds += stretch.epochs * nanoseconds
        self._sizes.append(stretch.epochs * nanoseconds)
        order = train.order if stretch.orders is None else stretch.orders[0]
        numbers = state.optimizer.numbers(stretch.rates[0], state.t + 1)
        moments = [address_of(moment) for moment in state.moments.values()]
        assert state.optimizer.rule is not None
        fields = {
            **self._samples_fields(engine, train, order, epoch.masked, epoch.masks_inputs),
            "flat": address_of(stretch.parameters.flat),
            "batch_size": batch_size,
            "batches": batches,
            "batch_slots": slots,
            "last_slots": sizes.slots_of(train.m - (batches - 1) * batch_size, train.X),
            "result": 1,  # becomes the worker's gradient
            "kind": RULES[state.optimizer.rule],
            "beta_1": float(numbers.beta_1),
            "beta_2": float(numbers.beta_2),
            "first_moment": moments[0],
            "second_moment": moments[-1],
            "poll": self._poll if nanoseconds > _LONG_EPOCH_NS else 0,
        }
        self._kept.append(epoch)
        return RunRecord(**(_BORROWED | fields | epoch.fields))

    def _validation_run(self, stretch: Stretch) -> RunRecord:
        """The run of the validation samples, for their loss alone."""
        engine, samples = stretch.engine, stretch.validation
        assert isinstance(engine, TiledEngine)
        assert samples is not None
        slots = engine.sizes.slots_of(samples.m, samples.X)
        nanoseconds = samples.m * engine.sizes.sample_ns_of(samples.X) / 3
        self.nanoseconds += stretch.epochs * nanoseconds
        fields = {
            **self._samples_fields(engine, samples, samples.order, False, False),
            "flat": address_of(stretch.parameters.flat),
            "batch_size": samples.m,
            "batch_slots": slots,
            "last_slots": slots,
            "poll": self._poll if nanoseconds > _LONG_EPOCH_NS else 0,
        }
        return RunRecord(**(_BORROWED | fields))

    def _samples_fields(
        self, engine: TiledEngine, samples: Samples, order: np.ndarray | None, masked: bool, masks_inputs: bool
    ) -> dict[str, int]:
        """The fields that say where the samples are, and what their tiles look like."""
        workspaces = engine.workspaces(masked)
        self._workspaces[id(workspaces)] = workspaces
        order = None if order is None else np.ascontiguousarray(order, np.int64)
        X_fields, more = engine.fields_of(samples.X, order, masks_inputs)
        weight = samples.sample_weight
        weights = None if weight is None else np.ascontiguousarray(weight.reshape(-1))
        self._kept += [order, weights]
        return {
            **dict(zip(_X_FIELDS, X_fields, strict=True)),
            **more,
            "network": workspaces.network,
            "stop": self._stop,
            "pieces": engine.sizes.pieces,
            "piece": engine.sizes.piece,
            "Y": address_of(samples.Y),
            "y_row": samples.Y.strides[0],
            "y_sample": samples.Y.strides[1],
            "weights": 0 if weights is None else address_of(weights),
        }

    def _job(self, stretch: Stretch, run: RunRecord, address: int, validation: int) -> JobRecord:
        """A stretch's job, with the tables of its epochs."""
        state, best, epochs = stretch.optimizer_state, stretch.best, stretch.epochs
        steps = step_tables(state, stretch.rates, run.batches)
        losses, nanoseconds = np.empty((2, epochs)), np.zeros(epochs, np.int64)
        self._tables.append((losses, nanoseconds))
        self._kept.append(steps)
        at, row = address_of(steps), 8 * epochs * run.batches
        orders = stretch.orders
        return JobRecord(
            run=address,
            validation=validation,
            workers=self._workers.address,
            validation_workers=self._workers.address,
            epochs=epochs,
            batches=run.batches,
            orders=run.order,
            order_step=0 if orders is None else orders.strides[0],
            rates=at,
            epsilons=at + row,
            decays=at + 2 * row if steps[2].any() else 0,
            first_step=state.t,
            losses=address_of(losses),
            validation_losses=address_of(losses) + 8 * epochs,
            nanoseconds=address_of(nanoseconds),
            best_weights=address_of(best.weights),
            patience=best.patience,
            epochs_since=best.epochs_since,
            best_epoch=-1,
            tolerance=best.tolerance,
            best_loss=best.loss,
        )

    def write_down(self) -> None:
        """What came of every stretch, from its job's record."""
        size = size_of(JobRecord) // 8
        integers = self._records.numbers.reshape(-1, size).tolist()
        floats = self._records.numbers.view(np.float64).reshape(-1, size)[:, _BEST_LOSS].tolist()
        for stretch, record, best_loss, (losses, nanoseconds) in zip(
            self._stretches, integers, floats, self._tables, strict=True
        ):
            job = JobRecord(*record)
            best, recorded = stretch.best, job.recorded
            best.loss, best.epochs_since, best.epoch = best_loss, job.epochs_since, job.best_epoch
            stretch.losses = losses[0, :recorded].tolist()
            stretch.validation_losses = [] if stretch.validation is None else losses[1, :recorded].tolist()
            stretch.seconds = (nanoseconds[:recorded] * 1e-9).tolist()
            stretch.begun, stretch.end = job.begun, End(job.end)
            stretch.optimizer_state.t += job.steps
            stretch.optimizer_state.learning_rate = stretch.rates[max(0, job.begun - 1)]


def _apart(sizes: Sequence[float], workers: int) -> np.ndarray:
    """An order of jobs in which neighbours of one size are not done at the same time, and sizes stay in their order.

    The vectors of neighbours often lie side by side in memory, and two cores that train them slow each other down: a
    core probably prefetches beyond the end of a vector, and takes lines from the core that writes there.
    """
    order, start = np.arange(len(sizes)), 0
    for _, group in groupby(sizes):
        count = len(list(group))
        each = -(-count // workers)
        places = np.arange(each * workers).reshape(workers, each).T.reshape(-1)
        order[start : start + count] = start + places[places < count]
        start += count
    return order


_BORROWED: dict[str, Any] = dict.fromkeys(RunRecord._fields[: RunRecord._fields.index("order")], 0)
"""The fields without defaults; the worker's own memory takes the place of some."""
_X_FIELDS = RunRecord._fields[RunRecord._fields.index("X") : RunRecord._fields.index("order") + 1]
_BEST_LOSS = JobRecord._fields.index("best_loss")
