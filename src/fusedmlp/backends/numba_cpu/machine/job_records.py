"""Records of many trainings at once: a queue of jobs, each some epochs of one network, and a worker's own memory."""

from __future__ import annotations

from typing import NamedTuple

from fusedmlp.backends.numba_cpu.machine.records import reader


class JobRecord(NamedTuple):
    """Some epochs of one training. Unnamed ints are addresses; of tables, with a row per epoch."""

    run: int
    """`RunRecord` of an epoch."""
    validation: int
    """`RunRecord` of the validation samples; 0 for none."""
    workers: int
    """The addresses of the `WorkerRecord` of each worker."""
    validation_workers: int
    """As workers: no tile of the validation samples has masks."""
    epochs: int
    """Their number."""
    batches: int
    """The batches of an epoch."""
    orders: int
    """0: the samples as they lie."""
    order_step: int
    """Bytes from one epoch's order to the next."""
    rates: int
    """As in `RunRecord`, like the next two."""
    epsilons: int
    decays: int
    first_step: int
    """Steps that were taken before."""
    losses: int
    validation_losses: int
    nanoseconds: int
    best_weights: int
    patience: int
    """As in `engines.crowd.Best`, like the next five."""
    epochs_since: int
    best_epoch: int
    tolerance: float
    best_loss: float
    begun: int = 0
    """Epochs that were begun; written by compiled code, like all that follows."""
    recorded: int = 0
    """Epochs whose losses are known."""
    steps: int = 0
    end: int = 0
    """Why the job ended: see `kernels.many`."""


class QueueRecord(NamedTuple):
    """Jobs, and what the workers that do them share. Unnamed ints are addresses."""

    jobs: int
    """The addresses of the `JobRecord`s."""
    length: int
    """The number of jobs."""
    next: int
    """The next job. This and the next two each have a cache line of their own."""
    finished: int
    """The number of jobs that are done."""
    stop: int
    """Not 0: all jobs are to end."""
    poll: int
    """A callback into Python."""
    next_poll: int
    """When, in nanoseconds of the clock; the leader's."""
    clock: int
    """As in `NetworkRecord`, like the next."""
    yielder: int
    work: int
    """`passes.work`."""
    shared: int
    """Whether there is one job, which all workers share."""
    active: int
    """Where the leader says which run of a shared job is being done; 0: none."""


class ScratchRecord(NamedTuple):
    """A worker's number and its memory for the job that it does: as in `RunRecord`."""

    number: int
    leader: int
    state: int
    done: int
    steps: int
    slot_sums: int
    sums: int
    losses: int
    slots: int
    gradient: int


job_at, queue_at, scratch_at = (reader(kind) for kind in (JobRecord, QueueRecord, ScratchRecord))
"""Compiled: the record at an address."""
