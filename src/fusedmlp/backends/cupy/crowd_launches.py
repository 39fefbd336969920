"""The launches of a crowd's networks of one shape, bounded in time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusedmlp.backends.cupy.captured_steps import follow
from fusedmlp.backends.cupy.crowd_tables import CrowdTables
from fusedmlp.backends.cupy.gpu_primitives import GpuPrimitives
from fusedmlp.backends.cupy.resident import FIRST_BATCHES, JOB_DTYPE, POLL_SECONDS, Resident
from fusedmlp.engines.crowd import Stretch


@dataclass(eq=False)
class Shape:
    """Networks that one launch trains: of one architecture, plan and arithmetic.

    Attributes
    ----------
    resident : Resident
    samples : int
        Of a tile.
    stream : cupy.cuda.Stream
    batch_seconds : float, optional
        How long a batch of a network took in the last stretches, by the GPU's clock.
    """

    resident: Resident
    samples: int
    stream: Any
    batch_seconds: float | None = None


class Launches:
    """Some networks of one shape, in its stream: launch after launch of about 0.05 s.

    Parameters
    ----------
    backend : GpuPrimitives
    shape : Shape
    numbers : list of int
        Which of the tables' stretches they are.
    tables : CrowdTables
    """

    def __init__(self, backend: GpuPrimitives, shape: Shape, numbers: list[int], tables: CrowdTables) -> None:
        self._cuda, self._shape, self._seconds = backend.xp.cuda, shape, shape.batch_seconds
        # Those with the most batches first, so that the ones that are left are the first ones.
        rows = {number: tables.job(number, shape.samples) for number in numbers}
        self._numbers = sorted(rows, key=lambda number: -rows[number].batches)
        self._batches = np.array([rows[number].batches for number in self._numbers])
        self._jobs = np.array([rows[number].record for number in self._numbers], JOB_DTYPE)
        self._on_device = backend.xp.empty((len(numbers), JOB_DTYPE.itemsize // 8), "int64")
        self._launched, self._begin, self._count = 0, 0.0, 0

    @property
    def left(self) -> bool:
        """Whether there are batches that were not launched."""
        return self._launched < self._batches[0]

    def launch(self) -> None:
        """Start the next batches of all networks that have any; returns at once."""
        if not self.left:
            return
        networks = int(np.count_nonzero(self._batches > self._launched))
        turns = -(-networks // self._shape.resident.at_a_time)
        self._count = FIRST_BATCHES
        if self._seconds is not None:
            self._count = max(1, int(POLL_SECONDS / (self._seconds * turns)))
        jobs = self._jobs[:networks]
        jobs["first_batch"] = self._launched
        jobs["batches"] = np.minimum(self._count, self._batches[:networks] - self._launched)
        self._count = int(jobs["batches"][0])
        self._begin = time.perf_counter()
        on_device, stream = self._on_device[:networks], self._shape.stream
        on_device.set(jobs.view(np.int64).reshape(networks, -1))
        follow(self._cuda, stream, self._cuda.get_current_stream())  # where all was written that the launch reads
        with stream:
            self._shape.resident.launch(on_device)
        self._launched += self._count
        self._count *= turns

    def wait(self) -> None:
        """Wait for what was launched."""
        self._shape.stream.synchronize()
        if self._count:
            self._seconds = max(1e-9, (time.perf_counter() - self._begin) / self._count)
            self._count = 0

    def done(self) -> list[tuple[int, int]]:
        """(number of a stretch, batches of it that were launched)."""
        return [
            (number, min(int(batches), self._launched))
            for number, batches in zip(self._numbers, self._batches, strict=True)
        ]

    def remember_pace(self, stretches: Sequence[Stretch]) -> None:
        """Note how long a batch took: of networks that ended early, the time of a launch says nothing."""
        pairs = zip(self._numbers, self._batches, strict=True)
        seconds = [
            max(stretches[number].seconds) * stretches[number].epochs / batches
            for number, batches in pairs
            if stretches[number].seconds
        ]
        self._shape.batch_seconds = max(seconds, default=0.0) or self._shape.batch_seconds
