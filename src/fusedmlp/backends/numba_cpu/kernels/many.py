"""Many trainings at once: a worker takes a network for some epochs, alone, and then the next one. Compiled, no GIL.

An epoch is a run of `passes.work` by one worker: the slots of a batch do not depend on who sums them, so the bits are
those of a run that several workers share. What happens between two epochs (the loss, the best weights, the end of
patience, the search for NaN and infinity) is that of `Training`. Where there is one training alone, the leader does
what is between its runs, and all workers share these.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from functools import cache

import numpy as np

from fusedmlp.backends.numba_cpu.kernels.elementwise import holds_not_finite
from fusedmlp.backends.numba_cpu.machine.compilation import from_python, internal, routine_address
from fusedmlp.backends.numba_cpu.machine.interruption import (
    POLL_NS,
    call_python,
    nanoseconds,
)
from fusedmlp.backends.numba_cpu.machine.intrinsics import (
    INTEGER,
    atomic_add,
    atomic_load,
    atomic_store,
    call_function,
    copy_bytes,
    load,
    relax,
)
from fusedmlp.backends.numba_cpu.machine.job_records import job_at, queue_at, scratch_at
from fusedmlp.backends.numba_cpu.machine.records import network_at, run_at
from fusedmlp.backends.numba_cpu.machine.simd import call, item_bytes, store

DONE, PATIENCE, LOSS, WEIGHTS, INTERRUPTED = range(5)
"""Why a job ended: the values of `engines.crowd.End`."""
_SPINS_BEFORE_YIELD = 1000


@cache
def train_jobs_address(dtype: str) -> int:
    """Where `train_jobs` starts; compiled at the first call."""
    return routine_address(train_jobs(np.dtype(dtype).type(0)), 2)


@cache
def compiled_epoch_loss():
    """`epoch_loss` for Python: the loss of the batches before `first` is at an address."""

    def loss_from(before, losses, first, batches, batch_size, samples, mean):
        return _epoch_loss(load(0.0, before), losses, first, batches, batch_size, samples, mean)

    return from_python(loss_from, 7)


def epoch_loss(total, losses, first, batches, batch_size, samples, mean):
    """`total` and what the losses of batches `first` to `batches` - 1, at an address, add to it: shares, or a sum."""
    for batch in range(first, batches):
        share = min(batch_size, samples - batch * batch_size) / samples if mean else 1.0
        total += load(0.0, losses + 8 * batch) * share
    return total


_epoch_loss = internal(epoch_loss)


@internal
def poll(queue, scratch):
    """Give Python its turn, if this is the leader and it is time for that."""
    if scratch.leader:
        now = nanoseconds(queue.clock) if queue.clock else queue.next_poll
        if now >= queue.next_poll:
            call_python(queue.poll)
            queue.next_poll = now + POLL_NS


@internal
def borrow(run, scratch):
    """Let a run use a worker's own memory for what it needs between its first task and its last."""
    run.state, run.done, run.steps = scratch.state, scratch.done, scratch.steps
    run.slot_sums, run.sums, run.losses = scratch.slot_sums, scratch.sums, scratch.losses
    if run.result:
        run.slots, run.result = scratch.slots, scratch.gradient


@internal
def pass_over(queue, scratch, run_address, workers):
    """All batches of a run, by this worker and whoever joins it; the number of those that had their step."""
    run = run_at(run_address)
    store(INTEGER, run.done)
    store(INTEGER, run.steps)
    run.next_poll = queue.next_poll
    atomic_store(run.state, INTEGER)
    if queue.shared:
        atomic_store(queue.active, run_address)
    call(queue.work, (run_address, load(INTEGER, workers + 8 * scratch.number)))
    if queue.shared:
        atomic_store(queue.active, INTEGER)
    if run.poll:
        queue.next_poll = max(queue.next_poll, run.next_poll)
    return load(INTEGER, run.steps)


@internal
def train_epoch(queue, scratch, job, epoch):
    """An epoch of a job; whether all of its batches had their step. Its loss and time are written down."""
    run = run_at(job.run)
    start = nanoseconds(queue.clock) if queue.clock else INTEGER
    tables = epoch * job.batches * 8
    run.order = job.orders + epoch * job.order_step
    run.rates, run.epsilons = job.rates + tables, job.epsilons + tables
    run.decays = job.decays + tables if job.decays and load(0.0, job.decays + tables) != 0.0 else INTEGER
    run.first_step = job.first_step + epoch * job.batches
    job.begun = epoch + 1
    steps = pass_over(queue, scratch, job.run, job.workers)
    job.steps += steps
    if steps < job.batches:
        return False
    loss = _epoch_loss(0.0, run.losses, 0, job.batches, run.batch_size, run.samples, network_at(run.network).mean)
    store(loss, job.losses + 8 * epoch)
    end = nanoseconds(queue.clock) if queue.clock else INTEGER
    store(end - start, job.nanoseconds + 8 * epoch)
    return True


@internal
def follow_best(like, job, epoch, loss):
    """What `Training` does after an epoch with this monitored loss; whether the job is to end, and why."""
    run = run_at(job.run)
    network = network_at(run.network)
    if not (np.isfinite(loss) and np.isfinite(load(0.0, job.losses + 8 * epoch))):
        return LOSS
    item = item_bytes(like)
    if holds_not_finite(like, run.flat, np.int64(1), network.n_parameters, np.int64(0), item):
        return WEIGHTS
    job.epochs_since = 0 if loss < job.best_loss - job.tolerance else job.epochs_since + 1
    if loss < job.best_loss:
        job.best_loss, job.best_epoch = loss, epoch
        copy_bytes(job.best_weights, run.flat, network.n_parameters * item)
    return PATIENCE if job.patience > 0 and job.epochs_since >= job.patience else DONE


@internal
def train(like, queue, job, scratch):
    """A job, epoch by epoch; why it ended."""
    borrow(run_at(job.run), scratch)
    if job.validation:
        borrow(run_at(job.validation), scratch)
    for epoch in range(job.epochs):
        poll(queue, scratch)
        if atomic_load(queue.stop) or not train_epoch(queue, scratch, job, epoch):
            return INTERRUPTED
        loss = load(0.0, job.losses + 8 * epoch)
        if job.validation:
            pass_over(queue, scratch, job.validation, job.validation_workers)
            if atomic_load(queue.stop):
                return INTERRUPTED
            loss = load(0.0, scratch.losses)
            store(loss, job.validation_losses + 8 * epoch)
        job.recorded = epoch + 1
        end = follow_best(like, job, epoch, loss)
        if end != DONE:
            return end
    return DONE


@internal
def wait(queue, scratch, spins):
    """Look again later."""
    relax()
    if spins > _SPINS_BEFORE_YIELD:
        poll(queue, scratch)
        if queue.yielder:
            call_function(queue.yielder)


@internal
def join_runs(queue, scratch):
    """A helper's part in the runs of a shared job, one after the other, until the job is done.

    A helper that is late finds a run at its end, and has nothing to do there. What it reads of a run before it takes a
    task is the same in all epochs.
    """
    job, spins = job_at(load(INTEGER, queue.jobs)), 0
    while atomic_load(queue.finished) < queue.length:
        run_address = atomic_load(queue.active)
        if run_address:
            workers = job.validation_workers if run_address == job.validation else job.workers
            call(queue.work, (run_address, load(INTEGER, workers + 8 * scratch.number)))
            spins = 0
        spins += 1
        wait(queue, scratch, spins)


def train_jobs(like):
    """A worker's part in a queue of jobs: job after job, until there is none; the leader stays to the end."""

    def train_jobs(queue_address, scratch_address):
        queue, scratch = queue_at(queue_address), scratch_at(scratch_address)
        if queue.shared and not scratch.leader:
            join_runs(queue, scratch)
            return
        while True:
            place = atomic_add(queue.next, 1)
            if place >= queue.length:
                break
            job = job_at(load(INTEGER, queue.jobs + 8 * place))
            job.end = train(like, queue, job, scratch)
            atomic_add(queue.finished, 1)
        spins = 0
        while scratch.leader and atomic_load(queue.finished) < queue.length:
            spins += 1
            wait(queue, scratch, spins)

    return train_jobs
