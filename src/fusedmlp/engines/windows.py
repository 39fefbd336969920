"""Epochs in windows: parts of an epoch whose samples are in fast memory, one after the other."""

from __future__ import annotations

from collections.abc import Callable

from fusedmlp.engines.options import EpochPosition


def window_samples(sample_bytes: int, batch_size: int, n_bytes: int) -> int:
    """The samples of a window of about so many bytes: whole batches, at least one."""
    return max(1, n_bytes // max(1, sample_bytes * batch_size)) * batch_size


class Windows:
    """Where an epoch stands, as its windows see it.

    A window is a pass of an engine over samples of its own, whose losses are averaged by their number. The loss of the
    epoch is put together of those. Wherever a pass was interrupted, the numbers are those of one that was not.

    Parameters
    ----------
    position : EpochPosition
        Of the epoch; it follows the windows.
    batch_size : int
    samples : int
        The samples of a window but the last: whole batches.
    averages : bool
        Whether losses are averaged by samples, and not added up.
    """

    def __init__(self, position: EpochPosition, batch_size: int, samples: int, averages: bool) -> None:
        self._position, self._averages = position, averages
        self._batch_size, self._batches = batch_size, samples // batch_size
        self._current = 0

    @property
    def first(self) -> int:
        """The window to begin with."""
        return self._position.batches // self._batches

    def over(self, number: int) -> bool:
        """Whether the pass ends before this window."""
        end = self._position.end
        return end is not None and end <= number * self._batches

    def run(self, number: int, samples: int, train: Callable[[EpochPosition], object]) -> None:
        """Train on a window.

        Parameters
        ----------
        number : int
        samples : int
            How many it has.
        train : callable
            ``train(position)`` trains on the window's batches, from `position` on.
        """
        position, before, self._current = self._position, number * self._batches, samples
        end = None if position.end is None else min(self._batches, position.end - before)
        here = EpochPosition(position.batches - before, position.loss, end)
        try:
            if here.batches * self._batch_size < samples:
                train(here)
        finally:
            position.batches, position.loss = before + here.batches, here.loss
            if here.batches * self._batch_size >= samples:
                position.before += position.loss * samples if self._averages else position.loss
                position.loss = 0.0

    def finish(self, samples: int) -> None:
        """Turn the loss into that of the epoch, all of whose `samples` are done; once more changes nothing."""
        position = self._position
        if position.loss == 0.0:  # so it is after the last window
            position.loss = position.before / samples if self._averages else position.before
            position.before = 0.0

    def share(self, samples: int) -> float:
        """What is done adds so much to the loss of an epoch of `samples`, wherever the pass was interrupted."""
        position = self._position
        loss = position.before + position.loss * (self._current if self._averages else 1)
        return loss / samples if self._averages else loss
