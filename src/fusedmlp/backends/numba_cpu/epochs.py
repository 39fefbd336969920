"""An epoch's options and its optimizer as fields of a `RunRecord`, with the callbacks that they need."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from fusedmlp.backends.numba_cpu.kernels.random_masks import MaskRecord
from fusedmlp.backends.numba_cpu.machine.buffers import address_of
from fusedmlp.backends.numba_cpu.machine.interruption import STOP_AT_ONCE, GuardedCallback
from fusedmlp.backends.numba_cpu.machine.records import written
from fusedmlp.engines.options import BatchParts, EpochOptions, GradientPhase
from fusedmlp.model.dropout import Dropout
from fusedmlp.model.optimizers import RULES, OptimizerState

_64 = 1 << 64
_TABLE = 1024
"""Steps whose corrections are computed at once, where an epoch has fewer."""


def _corrections(beta_1: float, beta_2: float, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """√(1−β₂ᵗ) and 1−β₁ᵗ of Adam's steps `first` to first + count - 1. Short epochs find them in a table."""
    place, offset = divmod(first, _TABLE)
    if offset + count > _TABLE:
        return _computed_corrections(beta_1, beta_2, first, count)  # not kept: it may be long
    root, divisor = _kept_corrections(beta_1, beta_2, place * _TABLE, _TABLE)
    return root[offset : offset + count], divisor[offset : offset + count]


def _computed_corrections(beta_1: float, beta_2: float, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    t = np.arange(first, first + count)
    return np.sqrt(1 - beta_2**t), 1 - beta_1**t


_kept_corrections = lru_cache(8)(_computed_corrections)


def step_tables(state: OptimizerState, rates: list[float], batches: int) -> np.ndarray:
    """The numbers of all steps of several epochs: those that `Epoch` has for each, to the bit.

    Returns
    -------
    array of shape (3, epochs, batches), float64
        `rates`, `epsilons` and `decays` of a `RunRecord`, with a row per epoch.
    """
    optimizer, first, rule = state.optimizer, state.t + 1, state.optimizer.rule
    corrected = rule in ("adam", "adamw") and batches > 1
    table = np.empty((3, len(rates), batches))
    # Epsilon and decay of Adam are the same in all steps, and the rate of SGD is the epoch's.
    alike = rule != "adamw" and (corrected or rule != "adam")
    told = rates[:1] if alike else rates
    numbers = [optimizer.numbers(rate, first + epoch * batches) for epoch, rate in enumerate(told)]
    table[0] = np.array(rates if alike else [each.rate for each in numbers])[:, None]
    table[1] = np.array([each.epsilon for each in numbers])[:, None]
    table[2] = np.array([-each.decay for each in numbers])[:, None]
    if corrected:
        corrections = _kept_corrections(numbers[0].beta_1, numbers[0].beta_2, first, len(rates) * batches)
        root, divisor = (part.reshape(-1, batches) for part in corrections)
        np.divide(np.array(rates)[:, None] * root, divisor, out=table[0])
        if rule == "adamw":
            table[1] *= root / root[:, :1]
    return table


class Epoch:
    """Fields of a run with `batches` batches, and what must live as long as it.

    Parameters
    ----------
    options : EpochOptions
    state : OptimizerState
    batches : int
        Of the whole epoch.
    gradient, sums : array
        What a gradient phase is given: the engine's gradient, and Σ w j, Σ w and the count of a batch.
    stop : array of int64
        Becomes not 0 where a gradient phase raises an exception.
    steps : bool
        Whether the optimizer's steps are part of the run.
    first : int
        The batch that the run begins with.
    """

    def __init__(
        self,
        options: EpochOptions,
        state: OptimizerState,
        batches: int,
        gradient: np.ndarray,
        sums: np.ndarray,
        stop: np.ndarray,
        steps: bool = True,
        first: int = 0,
    ) -> None:
        self.poll, self.first = options.poll, first
        self.masked = options.dropout is not None
        self.masks_inputs = options.dropout is not None and options.dropout.rates[0] > 0
        self.parts = options.parts
        self._phase: GuardedCallback | None = None
        self._ends: GradientPhase | None = None
        self._kept: list[Any] = []
        self.fields: dict[str, Any] = {
            "alpha": float(options.alpha),
            "penalty_by_weight": int(options.penalty_by_weight),
            "loss_factor": float(options.loss_factor),
        }
        if options.mean_weight is not None:
            self.fields["mean_weight"] = float(options.mean_weight)
        if options.clip_norm is not None:
            self.fields |= {"clip_norm": float(options.clip_norm), "separate": 1}
        if options.dropout is not None:
            self.fields |= self._masks(options.dropout, state.t - first)
        if options.gradient_phase is not None:
            phase = options.gradient_phase
            compiled = phase.compiled_with(address_of(stop))
            self.fields["separate"] = 1
            if compiled is not None:
                self._ends = phase
                self.fields |= {"phase": compiled[0], "phase_context": compiled[1]}
            else:
                self._phase = GuardedCallback(lambda: phase.apply(gradient, sums), stop, STOP_AT_ONCE)
                self.fields["phase_callback"] = self._phase.address
        if steps:
            self.fields |= self._step(state, state.t - first, batches)

    @property
    def error(self) -> BaseException | None:
        """The exception of the gradient phase, or None."""
        source = self._phase or self._ends
        return None if source is None else source.error

    def parts_of(self, parts: BatchParts, slots_of: Callable[[int], int]) -> dict[str, int]:
        """The fields of batches whose samples lie in several processes, for slots that follow from the samples here."""
        sizes, places = np.unique(np.diff(parts.starts), return_inverse=True)
        table = np.zeros((len(parts.starts), 2), np.int64)
        table[:, 0] = parts.starts
        table[:-1, 1] = np.array([slots_of(int(size)) for size in sizes])[places]
        self._kept.append(table)
        fields = {"parts": address_of(table)}
        if self.masked and parts.numbers is not None:
            numbers = np.ascontiguousarray(parts.numbers, np.int64)
            self._kept.append(numbers)
            fields["numbers"] = address_of(numbers)
        return fields

    def _masks(self, dropout: Dropout, step: int) -> dict[str, int]:
        layers = range(len(dropout.rates))
        masks = written(*(MaskRecord(dropout.threshold(layer), dropout.scale(layer)) for layer in layers))
        self._kept.append(masks)
        seed = dropout.seed % _64
        return {"masks": masks.address, "seed": seed - _64 * (seed >> 63), "first_step": step}

    def _step(self, state: OptimizerState, before: int, batches: int) -> dict[str, Any]:
        """The rule, and the numbers of each batch's step after the first `before`: `Optimizer.numbers`, for all."""
        optimizer, rate = state.optimizer, float(state.learning_rate)
        assert optimizer.rule is not None
        numbers = optimizer.numbers(rate, before + 1)
        table = np.empty((3, batches))
        rates, epsilons, decays = table
        epsilons.fill(numbers.epsilon)
        decays.fill(-numbers.decay)
        if optimizer.rule in ("adam", "adamw") and batches > 1:
            root, divisor = _corrections(numbers.beta_1, numbers.beta_2, before + 1, batches)
            np.divide(rate * root, divisor, out=rates)
            if optimizer.rule == "adamw":
                epsilons *= root / root[0]
        else:
            rates.fill(numbers.rate)
        self._kept.append(table)
        at = address_of(table)
        moments = [address_of(moment) for moment in state.moments.values()]
        return {
            "kind": RULES[optimizer.rule],
            "rates": at,
            "epsilons": at + 8 * batches,
            "decays": at + 16 * batches if numbers.decay else 0,
            "beta_1": float(numbers.beta_1),
            "beta_2": float(numbers.beta_2),
            "first_moment": moments[0],
            "second_moment": moments[-1],
        }
