"""Block-shuffling: the order of the samples of an epoch, where their numbers would not fit in memory.

1. The blocks of the stream, each of contiguous samples, are put in a random order.
2. The samples are taken in the order of the blocks, a window at a time. A window is as large as memory allows: it has
   samples of many blocks. The last block of a window may go on in the next one.
3. The samples of a window are put in a random order.

So a sample can come to any place of an epoch, and a batch has samples of as many blocks as a window has. Where all
samples fit in one window, every order is as likely as any other. All is drawn from one seed an epoch.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


class BlockOrder:
    """An order of the samples of an epoch.

    Parameters
    ----------
    edges : numpy.ndarray of shape (blocks + 1,), int64
        As in `BlockStream`.
    seed : int, optional
        None: the samples come as they lie.
    """

    def __init__(self, edges: np.ndarray, seed: int | None) -> None:
        blocks = len(edges) - 1
        order = np.arange(blocks) if seed is None else np.random.default_rng([seed, 0]).permutation(blocks)
        self._firsts = edges[:-1][order]
        self._starts = np.concatenate(([0], np.cumsum(np.diff(edges)[order])))

    def segments(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """The samples at places `start` to `stop` of the order of the blocks: (first, last + 1), within a block."""
        block = int(np.searchsorted(self._starts, start, side="right")) - 1
        while start < stop:
            end = min(stop, int(self._starts[block + 1]))
            first = int(self._firsts[block]) - int(self._starts[block])
            yield first + start, first + end
            start, block = end, block + 1


def order_of_window(seed: int | None, number: int, samples: int) -> np.ndarray | None:
    """The order of a window's samples; None: as they lie."""
    return None if seed is None else np.random.default_rng([seed, 1 + number]).permutation(samples)
