"""Launches of ``kernels/resident.cu``: networks that stay in the shared memory of a block for whole epochs."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from fusedmlp.backends.cupy.captured_steps import CapturablePasses, Epochs, put_order
from fusedmlp.backends.cupy.cuda_tables import JOB, RECORD, SOURCE
from fusedmlp.backends.cupy.gpu_primitives import GpuPrimitives
from fusedmlp.backends.cupy.launch import C_TYPES, THREADS
from fusedmlp.backends.cupy.narrow_step import KINDS
from fusedmlp.backends.cupy.optimizer_step import ENDLESS, moments_of
from fusedmlp.backends.cupy.output_layer import OutputLayer
from fusedmlp.backends.cupy.resident_costs import fastest_arithmetic
from fusedmlp.backends.cupy.resident_plan import ResidentPlan
from fusedmlp.engines.options import CLIP_EPSILON, EpochOptions, EpochPosition
from fusedmlp.model.activations import HIDDEN_ACTIVATIONS, Array
from fusedmlp.model.architecture import Architecture
from fusedmlp.model.optimizers import RULES, OptimizerState

_TYPES = {"double": "f8", "Index": "i8"}  # others are addresses
SOURCE_DTYPE = np.dtype([(name, _TYPES.get(kind, "i8")) for name, kind in SOURCE.items()])
RECORD_DTYPE = np.dtype([(name, _TYPES[kind]) for name, kind in RECORD.items()])
JOB_DTYPE = np.dtype(
    [(name, SOURCE_DTYPE if kind == "Source<T>" else _TYPES.get(kind, "i8")) for name, kind in JOB.items()]
)
POLL_SECONDS = 0.05
FIRST_BATCHES = 64
"""The batches of the launch that measures how long one takes."""


class Resident:
    """The kernel for an architecture and a plan.

    Parameters
    ----------
    backend : GpuPrimitives
    architecture : Architecture
    output_layer : OutputLayer
    plan : ResidentPlan
    """

    def __init__(
        self, backend: GpuPrimitives, architecture: Architecture, output_layer: OutputLayer, plan: ResidentPlan
    ) -> None:
        launcher = self._launcher = backend.launcher
        arithmetic = fastest_arithmetic(plan, architecture, backend.precision, launcher.card())
        self._cluster = None if plan.blocks == 1 else plan.blocks
        kind = "resident" if self._cluster is None else "resident_cluster"
        one = f"{C_TYPES[architecture.dtype]},{KINDS[arithmetic]},{arithmetic}"
        name, most = f"{kind}_{arithmetic}", launcher.shared_bytes()
        self._kernel = launcher.kernel(f"{kind}.cu", name, one, most, self._cluster)
        plan_on_device = backend.xp.asarray(plan.ints, blocking=True)
        self._shared_bytes = plan.shared_bytes
        activation = np.int32(HIDDEN_ACTIVATIONS[architecture.hidden_activation].code)
        ints = np.int32(plan.ints.shape[1])
        self._arguments = plan_on_device, ints, activation, output_layer.loss, output_layer.most

    @cached_property
    def at_a_time(self) -> int:
        """The networks that the current GPU trains at the same time."""
        if self._cluster is None:
            return self._launcher.blocks_at_a_time(self._kernel, self._shared_bytes)
        return self._launcher.clusters_at_a_time(self._kernel, self._cluster, self._shared_bytes)

    def launch(self, jobs: Array) -> None:
        """Train a network for each of `jobs`, shape (networks, fields), on the device; returns at once."""
        grid = (len(jobs),) if self._cluster is None else (self._cluster, len(jobs))
        self._kernel(grid, (THREADS,), (jobs, *self._arguments), shared_mem=self._shared_bytes)


class ResidentEpochs:
    """The epochs of a training whose network is resident: one launch each, or one for every 0.05 s.

    Parameters
    ----------
    engine : CapturablePasses
    epochs : Epochs
    plan : ResidentPlan
        For the network, the batch size and the rule of the optimizer.
    """

    def __init__(self, engine: CapturablePasses, epochs: Epochs, plan: ResidentPlan) -> None:
        self._engine, self.epochs, self.plan = engine, epochs, plan
        cupy = engine.backend.xp
        self._resident = Resident(engine.backend, engine.architecture, engine.output_layer, plan)
        self._m = epochs.samples[0].shape[1] if epochs.ordered is None else epochs.ordered
        self._order = None if epochs.ordered is None else cupy.empty((self._m,), "int64")
        self._rates, self._results = cupy.empty((1,), "float64"), cupy.empty((2,), "float64")
        self._jobs = cupy.empty((1, JOB_DTYPE.itemsize // 8), "int64")
        self._record = cupy.empty((1, len(RECORD)), "int64")
        self._batch_seconds: float | None = None

    def run_epoch(
        self,
        state: OptimizerState,
        order: Array | None,
        position: EpochPosition,
        poll: Callable[[], None] | None = None,
    ) -> float:
        """As `CapturedSteps.run_epoch`."""
        if self._order is not None:
            put_order(self._engine.backend, self._order, order)
        self._rates.set(np.array([state.learning_rate]))
        self._results.fill(0)
        record = np.zeros(1, RECORD_DTYPE)
        record["loss"] = position.loss
        self._record.set(record.view(np.int64).reshape(1, -1))
        job = self._job(state)
        job["steps"] = state.t - position.batches
        whole = int(job["train"]["batches"][0])
        end = whole if position.end is None else min(whole, position.end)
        try:
            while position.batches < end:
                left = end - position.batches
                count = left if poll is None else min(left, self._batches_at_a_time())
                job["first_batch"], job["batches"] = position.batches, count
                begin = time.perf_counter()
                self._jobs.set(job.view(np.int64).reshape(1, -1))
                self._resident.launch(self._jobs)
                state.t += count
                position.batches += count
                if poll is not None:
                    self._engine.backend.synchronize()
                    self._batch_seconds = (time.perf_counter() - begin) / count
                    poll()
        finally:
            # The record has the loss of an epoch that goes on; the table has that of one that is over.
            record = self._record.get().view(RECORD_DTYPE).reshape(-1)
            over = bool(record["epochs"][0])
            position.loss = float(self._results[0] if over else record["loss"][0])
        return position.loss

    def _batches_at_a_time(self) -> int:
        if self._batch_seconds is None:
            return FIRST_BATCHES
        return max(1, int(POLL_SECONDS / self._batch_seconds))

    def _job(self, state: OptimizerState) -> np.ndarray:
        """The training, as the kernel takes it, shape (1,)."""
        parameters, arrays, _, batch_size, alpha, mean_weight, clip_norm, loss_factor, by_weight = self.epochs
        options = EpochOptions(
            alpha, mean_weight, None, clip_norm, penalty_by_weight=by_weight, loss_factor=loss_factor
        )
        job = np.zeros(1, JOB_DTYPE)
        write_job(job[0], parameters.flat, state, self._engine.loss_is_mean, options)
        write_source(job[0]["train"], arrays, self._m, batch_size, address_of(self._order))
        at = address_of(self._results)
        job["rates"], job["record"] = address_of(self._rates), address_of(self._record)
        job["losses"], job["nanoseconds"] = at, at + 8
        return job


def address_of(x: Array | None) -> int:
    """Where an array on the device begins; 0 for None."""
    return 0 if x is None else int(x.data.ptr)


def write_job(job: Any, flat: Array, state: OptimizerState, is_mean: bool, options: EpochOptions) -> None:
    """Write what a training has besides samples and results into a record of `JOB_DTYPE`.

    Parameters
    ----------
    job : numpy.void
        Of zeros.
    flat : array of shape (n_parameters,)
    state : OptimizerState
        Before the first epoch.
    is_mean : bool
        Whether J is a mean over samples.
    options : EpochOptions
    """
    optimizer = state.optimizer
    assert optimizer.rule is not None
    numbers = optimizer.numbers(1.0, ENDLESS)
    first, second = moments_of(state)
    job["theta"], job["first"], job["second"] = (address_of(x) for x in (flat, first, second))
    job["steps"], job["rule"], job["is_mean"] = state.t, RULES[optimizer.rule], is_mean
    job["penalty_by_weight"], job["loss_factor"] = options.penalty_by_weight, options.loss_factor
    job["divisor"] = (options.mean_weight or 0.0) if is_mean else 1.0
    job["alpha"], job["clip_norm"], job["clip_epsilon"] = options.alpha, options.clip_norm or 0.0, CLIP_EPSILON
    job["beta_1"], job["beta_2"], job["epsilon"] = numbers.beta_1, numbers.beta_2, numbers.epsilon
    job["decoupled"] = numbers.decay


def write_source(
    source: Any,
    arrays: tuple[Array, Array, Array | None],
    samples: int,
    batch_size: int,
    order: int = 0,
    order_step: int = 0,
) -> None:
    """Write samples into a record of `SOURCE_DTYPE`.

    Parameters
    ----------
    source : numpy.void
    arrays : tuple of array of shape (n_in, m), (n_out, m), (1, m) or None
        X, Y and weights.
    samples : int
        Of an epoch.
    batch_size : int
    order, order_step : int
        The address of the columns that are meant, int64, or 0; their number from one epoch to the next.
    """
    X, Y, weights = arrays
    item = X.itemsize
    source["X"], source["Y"], source["weights"] = (address_of(x) for x in arrays)
    source["x_step"], source["x_line"] = (stride // item for stride in X.strides)
    source["y_line"], source["y_step"] = (stride // item for stride in Y.strides)
    source["weight_step"] = 0 if weights is None else weights.strides[1] // item
    source["order"], source["order_step"] = order, order_step
    source["samples"], source["batch_size"], source["batches"] = samples, batch_size, -(-samples // batch_size)
