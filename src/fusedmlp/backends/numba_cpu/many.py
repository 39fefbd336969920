"""Many trainings at once on numba-cpu: each worker takes a whole network for some epochs, then the next.

One training alone is shared by all workers, where its batches have parts for them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from fusedmlp.backends.numba_cpu.jobs import Jobs, Scratch
from fusedmlp.backends.numba_cpu.kernels import many, passes
from fusedmlp.backends.numba_cpu.machine.buffers import AlignedArray
from fusedmlp.backends.numba_cpu.machine.interruption import POLL_NS, STOP_EARLY, GuardedCallback, clock_address
from fusedmlp.backends.numba_cpu.machine.intrinsics import yield_address
from fusedmlp.backends.numba_cpu.machine.job_records import QueueRecord
from fusedmlp.backends.numba_cpu.machine.records import written
from fusedmlp.backends.numba_cpu.tiled_engine import TiledEngine
from fusedmlp.backends.numba_cpu.workers import crew, threads
from fusedmlp.engines.base import Engine
from fusedmlp.engines.crowd import Crowd, Stretch
from fusedmlp.engines.samples import Samples
from fusedmlp.model.optimizers import Optimizer

_NEXT, _FINISHED, _STOP, _ACTIVE, _SHARED_SIZE = 0, 16, 32, 48, 64


class CpuCrowd(Crowd):
    """The networks of one ``fit_many``, and the workers' memory, which all of them use in turn."""

    def __init__(self) -> None:
        self._scratch = [Scratch() for _ in range(self.workers)]
        self._shared = shared = AlignedArray(_SHARED_SIZE, "int64")
        self._polls: list[Callable[[], None]] = []
        polls = self._polls  # without a cycle: a crowd's memory goes with it
        self._callback = GuardedCallback(lambda: polls[-1](), shared.numbers[_STOP : _STOP + 1], STOP_EARLY)
        self._prepared: Jobs | None = None

    @property
    def workers(self) -> int:
        return threads.thread_count()

    def takes(
        self,
        engine: Engine,
        optimizer: Optimizer,
        train: Samples,
        validation: Samples | None,
        batch_size: int,
        drops: bool = False,
    ) -> bool:
        if not isinstance(engine, TiledEngine) or optimizer.rule is None:
            return False
        return not engine.sizes.better_shared(min(batch_size, train.m), train.X, self.workers)

    def can_share(self, engine: Engine, train: Samples, batch_size: int) -> bool:
        assert isinstance(engine, TiledEngine)
        return self.workers > 1 and engine.sizes.slots_of(min(batch_size, train.m), train.X) > 1

    def epoch_seconds(self, engine: Engine, train: Samples, validation: Samples | None) -> float:
        assert isinstance(engine, TiledEngine)
        seconds = train.m * engine.sizes.sample_ns_of(train.X)
        if validation is not None:
            seconds += validation.m * engine.sizes.sample_ns_of(validation.X) / 3
        return seconds * 1e-9

    def prepare(self, stretches: Sequence[Stretch]) -> None:
        self._prepared = self._jobs(stretches) if stretches else None

    def _jobs(self, stretches: Sequence[Stretch]) -> Jobs:
        return Jobs(stretches, self.workers, self._shared.address + 8 * _STOP, self._callback.address)

    def run(
        self, stretches: Sequence[Stretch], poll: Callable[[], None], meanwhile: Callable[[], None] | None = None
    ) -> None:
        shared, callback, first = self._shared, self._callback, stretches[0]
        jobs, self._prepared = self._prepared, None
        if jobs is None or not jobs.are_of(stretches):
            jobs = self._jobs(stretches)
        is_shared = len(stretches) == 1 and self.can_share(first.engine, first.train, first.batch_size)
        workers = self.workers if is_shared else min(self.workers, len(stretches))
        shared.numbers.fill(0)
        self._polls[:], callback.error = [poll], None
        error: list[BaseException] = []

        def guarded() -> None:
            """`meanwhile`: helpers are at work, so that an exception has to wait until they have stopped."""
            try:
                if meanwhile is not None:
                    meanwhile()
            except BaseException as raised:
                shared.numbers[_STOP] = STOP_EARLY
                error.append(raised)

        with ExitStack() as stack:
            for engine in {id(stretch.engine): stretch.engine for stretch in stretches}.values():
                assert isinstance(engine, TiledEngine)
                stack.enter_context(engine.blas)
            jobs.let(self._scratch[:workers])
            queue = written(
                QueueRecord(
                    jobs=jobs.addresses.address,
                    length=len(stretches),
                    next=shared.address + 8 * _NEXT,
                    finished=shared.address + 8 * _FINISHED,
                    stop=shared.address + 8 * _STOP,
                    poll=callback.address,
                    next_poll=time.monotonic_ns() + POLL_NS,
                    clock=clock_address(),
                    yielder=yield_address(),
                    work=passes.passes(first.engine.architecture.dtype).work,
                    shared=int(is_shared),
                    active=shared.address + 8 * _ACTIVE,
                )
            )
            records = [scratch.record(number) for number, scratch in enumerate(self._scratch[:workers])]
            addresses = AlignedArray(workers, "int64")
            addresses.numbers[:] = [record.address for record in records]
            work = many.train_jobs_address(first.engine.architecture.dtype)
            crew.crew().share(work, queue.address, addresses, workers, jobs.nanoseconds, guarded)
        jobs.write_down()
        for raised in (callback.error, *error):
            if raised is not None:
                raise raised
