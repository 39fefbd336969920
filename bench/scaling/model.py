"""The model of a step's time over N processes, and what it says about batches and numbers of processes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np


@dataclass(frozen=True)
class StepModel:
    """Seconds of a step.

    Attributes
    ----------
    fixed, sample : float
        A step and each of a process's samples, without messages and without drawing an order.
    shared_fixed, shared_sample : float
        The same where several processes share the memory of a machine and the sums of a step: these are kept apart from
        the update, and the parts of each batch are looked up.
    draw : float
        For each sample of all processes: every process draws the order of all.
    latency, byte : float
        An Allreduce of two processes: latency + bytes · byte.
    gradient_bytes : int
    """

    fixed: float
    sample: float
    shared_fixed: float
    shared_sample: float
    draw: float
    latency: float
    byte: float
    gradient_bytes: int

    def allreduce(self, ranks: int) -> float:
        """The faster of recursive doubling and of a reduce-scatter with an allgather."""
        rounds, n = math.log2(ranks), self.gradient_bytes
        doubling = rounds * (self.latency + n * self.byte)
        scattered = 2 * rounds * self.latency + 2 * (ranks - 1) / ranks * n * self.byte
        return min(doubling, scattered)

    def largest_part(self, ranks: int, batch: float) -> float:
        """The samples of the process that has most of a step's, of `batch` on average: all wait for it."""
        normal = NormalDist().inv_cdf((ranks - 0.375) / (ranks + 0.25))  # the largest of so many numbers (Blom, 1958)
        return batch + normal * math.sqrt(batch * (1 - 1 / ranks))

    def step(self, ranks: int, batch: float) -> float:
        """Seconds of a step, with `batch` samples in each process on average."""
        if ranks == 1:
            return self.fixed + batch * (self.sample + self.draw)
        computing = self.shared_fixed + self.largest_part(ranks, batch) * self.shared_sample
        return computing + batch * ranks * self.draw + self.allreduce(ranks)

    def efficiency(self, ranks: int, batch: float) -> float:
        """Samples per second and process, as a share of what one process does alone."""
        return self.step(1, batch) / self.step(ranks, batch)

    def batch_for(self, ranks: int, efficiency: float) -> float:
        """The smallest batch of a process that has this efficiency; infinity where none has."""
        low, high = 0.0, 40.0
        if self.efficiency(ranks, 2**high) < efficiency:
            return math.inf
        while high - low > 1e-3:
            middle = (low + high) / 2
            low, high = (low, middle) if self.efficiency(ranks, 2**middle) >= efficiency else (middle, high)
        return 2.0**high


def fitted(batches: list[int], seconds: list[float], draw: float) -> tuple[float, float]:
    """(fixed, sample) through one process's times, whose relative errors count."""
    times = np.array(seconds)
    terms = np.stack([np.ones(len(batches)), np.array(batches)], axis=1) / times[:, None]
    (fixed, sample), *_ = np.linalg.lstsq(terms, np.ones(len(times)), rcond=None)
    return max(0.0, float(fixed)), float(sample) - draw
