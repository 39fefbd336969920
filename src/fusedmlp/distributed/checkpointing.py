"""Checkpoints where several processes train together: rank 0 has the file, and all go on from what is in it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from fusedmlp.checkpoints import Checkpoint, FileRecorder, Keeper
from fusedmlp.distributed.peers import Peers
from fusedmlp.distributed.phase import SumOverProcesses
from fusedmlp.distributed.sharded_samples import ShardedSamples
from fusedmlp.engines.digests import Whole
from fusedmlp.engines.samples import Samples
from fusedmlp.files.checkpoint_files import CheckpointFile
from fusedmlp.training.recording import Every, Recorder


class KeeperOfAll(Keeper):
    """Rank 0 reads and writes the file, which no other process has to see.

    What is written does not depend on how many processes there are, so that others, or one, can go on from it.

    Parameters
    ----------
    peers : Peers
    phase : SumOverProcesses
        That of the training.
    """

    def __init__(self, peers: Peers, phase: SumOverProcesses) -> None:
        self._peers, self._phase = peers, phase

    def whole(self, samples: Samples) -> Whole:
        """The samples of all processes; those that all have are whole here."""
        if not isinstance(samples, ShardedSamples):
            return super().whole(samples)
        numbering = samples.numbering
        counts = self._peers.counts(numbering.count)
        order = None if numbering.places is None else numbering.places + numbering.first
        return Whole(numbering.first, sum(counts), order, self._peers.everyones)

    def recorder(self, checkpoint: Checkpoint, description: Mapping[str, Any], backend: str) -> Recorder:
        """What lets rank 0 write the training down; all processes have one."""
        writer = FileRecorder(checkpoint, description, backend) if self._peers.rank == 0 else None
        return RecorderOfAll(self._peers, self._phase, writer, Every.of("checkpoint_every", checkpoint.every))

    def found(
        self, path: str | os.PathLike[str], description: Mapping[str, Any], backend: str
    ) -> CheckpointFile | None:
        """What rank 0 has found at its path, and its errors."""
        find = super().found
        return self._peers.by_first(lambda: find(path, description, backend))


class RecorderOfAll(Recorder):
    """Writes a training down by rank 0, while the others wait. All record after the same batch.

    What is due after some seconds is decided by the clock of rank 0.

    Parameters
    ----------
    peers : Peers
    phase : SumOverProcesses
    writer : FileRecorder or None
        That of rank 0.
    every : Every
    """

    def __init__(self, peers: Peers, phase: SumOverProcesses, writer: FileRecorder | None, every: Every) -> None:
        super().__init__(every)
        self._peers, self._phase, self._writer = peers, phase, writer

    def write(self, weights: Any, state: dict[str, Any], finished: bool) -> None:
        """Replace the file; where rank 0 cannot, its error is raised in all processes."""
        writer = self._writer
        self._peers.by_first(lambda: None if writer is None else writer.write(weights, state, finished))
        self._phase.go_on()

    def announce(self, epoch: int, batch: int) -> None:
        """Say it on rank 0."""
        if self._writer is not None:
            self._writer.announce(epoch, batch)

    @property
    def is_late(self) -> bool:
        """Whether the time between two checkpoints has passed on rank 0."""
        return self._writer is not None and super().is_late

    def is_due(self) -> bool:
        """The same in all processes."""
        due = super().is_due()
        return due if self.every.seconds is None else self._peers.from_first(due)
