"""How long an engine's work takes, and into which parts it is worth cutting.

Parts follow from the network, X and the batch alone: the bits of a result do not depend on the number of workers.
Times are estimates for one worker, in nanoseconds.
"""

from __future__ import annotations

import numpy as np

from fusedmlp.backends.numba_cpu.kernels import batch_ends, passes
from fusedmlp.engines.sparse import SparseMatrix
from fusedmlp.model.architecture import Architecture

Inputs = np.ndarray | SparseMatrix

# A weight takes this long for a sample, in its three products: a byte of it, for a dense X; and for each number that a
# sparse X stores, gathered and scattered.
_WEIGHT_BYTE_NS, _SPARSE_WEIGHT_BYTE_NS = 0.015, 0.055
_UNIT_NS, _SAMPLE_NS = 0.45, 20
_MORE_NUMBERS = 2
"""A sample of a sparse X takes as long as if it had so many more numbers."""
# A slot is worth its own sums, and the workers' asking for it, from about here.
_WORTH_A_SLOT_NS = 20_000
# Clearing a slot's sums and adding them up takes this long a byte; its samples should take so many times as long.
_BYTE_NS = 0.09
_SLOT_SHARE, _SPARSE_SLOT_SHARE = 12, 4
# The step of an optimizer takes this long a byte of the parameters. Helpers wait for it through the sums of a batch
# that is one slot: with a sparse X, such a batch can be short and its step long.
_STEP_BYTE_NS, _WORTH_SHARING_STEPS_NS = 0.3, 1_000_000
# Memory of all slots: so much, or more of it for large networks, so that several workers have something to do.
_SLOT_BYTES, _MOST_SLOT_BYTES = 32 * 2**20, 256 * 2**20
MOST_SLOTS, _ENOUGH_SLOTS, _FEWEST_SLOTS = 64, 8, 4
MOST_PIECES = 16
# A network of more bytes of parameters is not trained beside others, if its batches have enough slots.
_LARGEST_OWN_BYTES = 4 * 2**20
# Nor where the slots of all workers, each with a network of its own, were more than this.
_OWN_SLOT_BYTES = 32 * 2**20
# Samples to predict are cut into parts of whole tiles, or, if there are fewer tiles than this, into so many parts.
_FEW_PARTS, _SMALLEST_PART = 8, 64


class WorkSizes:
    """The estimates for a network.

    Parameters
    ----------
    architecture : Architecture

    Attributes
    ----------
    sample_ns : float
        Of a sample of a dense X, forward and backward.
    most_slots : int
        Slots of the largest batches.
    piece, pieces : int
        Parameters of a task after a batch's sums, and the number of these tasks.
    """

    def __init__(self, architecture: Architecture) -> None:
        a = architecture
        weights = sum(n_in * n_out for n_in, n_out in a.weight_shapes)
        vector_bytes = a.n_parameters * a.itemsize
        self.sample_ns = weights * a.itemsize * _WEIGHT_BYTE_NS + _UNIT_NS * sum(a.layer_sizes[1:-1]) + _SAMPLE_NS
        number_bytes = a.layer_sizes[1] * a.itemsize
        self._number_ns = number_bytes * _SPARSE_WEIGHT_BYTE_NS
        self._without_inputs_ns = self.sample_ns - a.n_inputs * number_bytes * _WEIGHT_BYTE_NS
        self._vector_bytes = vector_bytes
        self._sums_ns = vector_bytes * _BYTE_NS
        self._long_steps = vector_bytes * _STEP_BYTE_NS > _WORTH_SHARING_STEPS_NS
        self._slot_samples = self._samples_of_a_slot(_SLOT_SHARE, self.sample_ns)
        self.most_slots = most_slots(vector_bytes)
        chunks = -(-a.n_parameters // batch_ends.CHUNK)
        self.piece = -(-chunks // MOST_PIECES) * batch_ends.CHUNK
        self.pieces = -(-a.n_parameters // self.piece)

    def sample_ns_of(self, X: Inputs) -> float:
        """The time of a sample of X, forward and backward."""
        if not isinstance(X, SparseMatrix):
            return self.sample_ns
        return self._without_inputs_ns + self._number_ns * (len(X.values) / X.shape[1] + _MORE_NUMBERS)

    def slots_of(self, samples: int, X: Inputs) -> int:
        """Slots of a batch of samples of X: a power of two, so that two workers, or four, have as many each."""
        slot_samples = self._slot_samples
        if isinstance(X, SparseMatrix):
            slot_samples = self._samples_of_a_slot(_SPARSE_SLOT_SHARE, self.sample_ns_of(X))
        worth = max(1, min(self.most_slots, samples // slot_samples))
        return 1 << (worth.bit_length() - 1)

    def _samples_of_a_slot(self, share: float, sample_ns: float) -> int:
        return max(passes.SLOT_STEP, int(max(_WORTH_A_SLOT_NS, share * self._sums_ns) / sample_ns))

    def shares_steps(self, X: Inputs) -> bool:
        """Whether a helper is worth having for the steps of batches of one slot."""
        return self._long_steps and isinstance(X, SparseMatrix)

    def better_shared(self, batch_size: int, X: Inputs, workers: int) -> bool:
        """Whether the workers are better put on the parts of one network than on a network each.

        That is so where a batch has parts enough, and the vectors of several networks do not fit into the caches beside
        each other, or the slots of several batches are more memory than is meant for them.
        """
        slots = self.slots_of(batch_size, X)
        large = self._vector_bytes > _LARGEST_OWN_BYTES or workers * slots * self._vector_bytes > _OWN_SLOT_BYTES
        return large and slots >= min(workers, _ENOUGH_SLOTS)

    def part_of(self, X: Inputs, tile: int) -> int:
        """Samples to predict at a time: whole tiles, unless there are too few of them to share."""
        m = X.shape[1]
        if m <= _SMALLEST_PART:
            return m
        worth, tiles = int(2 / 3 * m * self.sample_ns_of(X) / _WORTH_A_SLOT_NS), -(-m // tile)
        parts, step = max(1, min(worth, tiles)), tile
        if tiles < _FEW_PARTS:
            parts, step = max(1, min(worth, _FEW_PARTS, m // _SMALLEST_PART)), passes.SLOT_STEP
        return -(-m // (parts * step)) * step


def most_slots(vector_bytes: int) -> int:
    """Slots of the largest batches, from the bytes of the parameters alone: bits must not depend on the machine.

    As many as fit 32 MiB, at most 64. A larger network has up to 8 that fit 256 MiB, and at least 4: a training with
    Adam holds four vectors of that size anyway.
    """
    fitting = _SLOT_BYTES // vector_bytes
    slots = max(fitting, min(_ENOUGH_SLOTS, _MOST_SLOT_BYTES // vector_bytes), _FEWEST_SLOTS)
    return 1 << (min(slots, MOST_SLOTS).bit_length() - 1)
