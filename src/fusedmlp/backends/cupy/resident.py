"""Launches of ``kernels/resident.cu``: networks that stay in the shared memory of a block for whole epochs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from fusedmlp.backends.cupy.captured_steps import CapturablePasses, Epochs, put_order
from fusedmlp.backends.cupy.cuda_tables import JOB
from fusedmlp.backends.cupy.gpu_primitives import GpuPrimitives
from fusedmlp.backends.cupy.launch import C_TYPES, THREADS
from fusedmlp.backends.cupy.narrow_step import KINDS
from fusedmlp.backends.cupy.optimizer_step import ENDLESS, moments_of
from fusedmlp.backends.cupy.output_layer import OutputLayer
from fusedmlp.backends.cupy.resident_costs import fastest_arithmetic
from fusedmlp.backends.cupy.resident_plan import ResidentPlan
from fusedmlp.engines.options import CLIP_EPSILON, EpochPosition
from fusedmlp.model.activations import HIDDEN_ACTIVATIONS, Array
from fusedmlp.model.architecture import Architecture
from fusedmlp.model.optimizers import RULES, OptimizerState

JOB_DTYPE = np.dtype([(name, "f8" if kind == "double" else "i8") for name, kind in JOB.items()])
_POLL_SECONDS = 0.05
_FIRST_BATCHES = 64  # of the launch that measures how long a batch takes


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
        launcher = backend.launcher
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
        self._rates, self._losses = cupy.empty((1,), "float64"), cupy.empty((1,), "float64")
        self._jobs = cupy.empty((1, len(JOB)), "int64")
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
        self._losses.fill(position.loss)
        job = self._job(state)
        end = int(job["batches_of_epoch"][0])
        if position.end is not None:
            end = min(end, position.end)
        try:
            while position.batches < end:
                left = end - position.batches
                count = left if poll is None else min(left, self._batches_at_a_time())
                job["first_batch"], job["batches"], job["steps"] = position.batches, count, state.t
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
            position.loss = float(self._losses[0])
        return position.loss

    def _batches_at_a_time(self) -> int:
        if self._batch_seconds is None:
            return _FIRST_BATCHES
        return max(1, int(_POLL_SECONDS / self._batch_seconds))

    def _job(self, state: OptimizerState) -> np.ndarray:
        """The training, as the kernel takes it."""
        parameters, arrays, _, batch_size, alpha, mean_weight, clip_norm, loss_factor = self.epochs
        is_mean = self._engine.loss_is_mean
        return job_of(
            parameters.flat,
            state,
            arrays,
            order=self._order,
            losses=self._losses,
            rates=self._rates,
            samples=self._m,
            batch_size=batch_size,
            batches_of_epoch=-(-self._m // batch_size),
            is_mean=is_mean,
            divisor=(mean_weight or 0.0) if is_mean else 1.0,
            loss_factor=loss_factor,
            alpha=alpha,
            clip_norm=clip_norm or 0.0,
        )


def job_of(flat: Array, state: OptimizerState, arrays: tuple[Array, Array, Array | None], **fields: Any) -> np.ndarray:
    """A record of `JOB_DTYPE`, shape (1,), of a network's parameters, its optimizer's state, X, Y and weights.

    Parameters
    ----------
    flat : array of shape (n_parameters,)
    state : OptimizerState
    arrays : tuple of array of shape (n_in, m), (n_out, m), (1, m) or None
    **fields
        Of `cuda_tables.JOB`: numbers, and arrays for addresses. What is not given is 0.
    """
    X, Y, weights = arrays
    optimizer = state.optimizer
    assert optimizer.rule is not None
    numbers = optimizer.numbers(1.0, ENDLESS)
    first, second = moments_of(state)
    fields |= {"theta": flat, "first": first, "second": second, "X": X, "Y": Y, "weights": weights}
    item = flat.itemsize
    fields |= dict(zip(("x_step", "x_line"), (stride // item for stride in X.strides), strict=True))
    fields |= dict(zip(("y_line", "y_step"), (stride // item for stride in Y.strides), strict=True))
    fields["weight_step"] = 0 if weights is None else weights.strides[1] // item
    fields |= {"rule": RULES[optimizer.rule], "clip_epsilon": CLIP_EPSILON, "decoupled": numbers.decay}
    fields |= {"beta_1": numbers.beta_1, "beta_2": numbers.beta_2, "epsilon": numbers.epsilon}
    job = np.zeros(1, JOB_DTYPE)
    for name, value in fields.items():
        if value is not None:
            job[name] = value.data.ptr if hasattr(value, "data") and hasattr(value.data, "ptr") else value
    return job
