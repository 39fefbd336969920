"""Launches of ``kernels/hidden_layer.cu``: the last hidden layer and the output layer, forward and backward."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fusedmlp.backends.cupy.launch import C_TYPES, PACK_BYTES, THREADS, Launcher, fitting, pointer, strided
from fusedmlp.backends.cupy.output_layer import OutputLayer
from fusedmlp.backends.cupy.sums import sum_rows
from fusedmlp.model.activations import Array
from fusedmlp.model.architecture import Architecture
from fusedmlp.model.parameters import Parameters

WIDTHS = (1, 4, 16)
"""The numbers of outputs that the kernel is compiled for; a network takes the smallest that is large enough."""

_SMALLEST_TEAM = 8
_SAMPLES_SHUFFLED_TOGETHER = {1: 4, 4: 2, 16: 1}  # `Share::G` in the source
_MOST_BLOCKS_OF_A_MULTIPROCESSOR = 4


def width_of(n_outputs: int) -> int:
    """The number of outputs of the kernel: the smallest that is large enough."""
    width = fitting(WIDTHS, n_outputs)
    assert width is not None, f"{n_outputs} outputs"
    return width


def units_of_a_thread(n_outputs: int, dtype: str) -> int:
    """`Share::K` in the source."""
    return (2 if dtype == "float64" else 4) // (2 if n_outputs > 4 else 1)


def most_samples(width: int, team: int) -> int:
    """The most samples of a team in a round.

    With many outputs one thread takes long for the output layer of a sample; a large team then has more samples at a
    time, so that more threads of the block do that.
    """
    return 4 if width <= 4 else max(4, team // 16)


def blocks_at_a_time(n_outputs: int, dtype: str, packed: bool) -> int:
    """Blocks that a multiprocessor runs at the same time: `Share::BLOCKS` in the source."""
    width = width_of(n_outputs)
    if dtype == "float64":
        return 3 if width == 1 else 2
    return {1: 4, 4: 3, 16: 2}[width] if packed else 2


def has_kernel(architecture: Architecture) -> bool:
    """Whether there is a kernel for the network's last hidden layer and number of outputs."""
    return len(architecture.layer_sizes) >= 3 and fitting(WIDTHS, architecture.n_outputs) is not None


def tiles_of(n: int, n_outputs: int, dtype: str) -> int:
    """The number of blocks for n units."""
    return -(-n // (THREADS * units_of_a_thread(n_outputs, dtype)))


class Shape(NamedTuple):
    """The sizes of a launch.

    Attributes
    ----------
    team : int
        Threads of a sample.
    samples : int
        The most samples of a team in a round.
    shared_bytes : int
        Shared memory of a block, for so many samples.
    """

    team: int
    samples: int
    shared_bytes: int


def shape_of(n: int, n_outputs: int, dtype: str, bias: bool, stages: int) -> Shape:
    """The sizes of a launch for n units, by the kernel's own constants.

    Parameters
    ----------
    n, n_outputs : int
    dtype : {"float32", "float64"}
    bias : bool
    stages : int
        `Share::STAGES` in the source: 2 on a GPU that copies asynchronously to shared memory, else 1.
    """
    width, units = width_of(n_outputs), units_of_a_thread(n_outputs, dtype)
    team = min(THREADS, max(_SMALLEST_TEAM, 1 << (-(-n // units) - 1).bit_length()))
    samples = most_samples(width, team)
    slots = THREADS // team * samples
    ring = stages * samples * THREADS * units
    dz = slots * (width + 4 if width > 4 else width)
    z = max(1, team // 32) * width * (slots | 1)
    known = stages * slots * (width + 1 + (width if tiles_of(n, n_outputs, dtype) > 1 else 0))
    sums_of_teams = n * n_outputs + bias * (n + n_outputs) if team < THREADS else 0
    return Shape(team, samples, max(ring + dz + z + known, sums_of_teams) * np.dtype(dtype).itemsize)


def samples_of(m: int, shape: Shape, width: int, blocks: int) -> int:
    """Samples of a team in a round: the most, or fewer where m samples would not reach all of so many blocks."""
    group = _SAMPLES_SHUFFLED_TOGETHER[width]
    wanted = -(-m // (blocks * (THREADS // shape.team)))
    return min(shape.samples, -(-wanted // group) * group)


class HiddenLayer:
    """The kernels for an architecture, with memory for the sums of their blocks.

    Parameters
    ----------
    launcher : Launcher
    cupy : module
    architecture : Architecture

    Attributes
    ----------
    tiles : int
        The number of blocks for the units; if there are several, Z is read twice.
    """

    def __init__(self, launcher: Launcher, cupy: Any, architecture: Architecture) -> None:
        *_, self._n, self._n_out = architecture.layer_sizes
        self._launcher, self._architecture = launcher, architecture
        self._item, self._dtype = architecture.itemsize, architecture.dtype
        self._width = width_of(self._n_out)
        self.tiles = tiles_of(self._n, self._n_out, self._dtype)
        stages = 2 if launcher.has_async_copies() else 1
        self._shape = shape_of(self._n, self._n_out, self._dtype, architecture.bias, stages)
        self._length = self._n * self._n_out + architecture.bias * (self._n + self._n_out)
        self._most_blocks = max(1, launcher.multiprocessors() * _MOST_BLOCKS_OF_A_MULTIPROCESSOR // self.tiles)
        self._blocks_at_a_time: dict[bool, int] = {}  # for packed and other Z
        self._partial = cupy.empty((self._most_blocks, self._length), self._dtype)

    def forward(
        self,
        parameters: Parameters,
        Z: Array,
        logits: Array,
        parts: Array | None,
        output_layer: OutputLayer,
        Y: Array | None = None,
        sample_weight: Array | None = None,
        gradients: Parameters | None = None,
    ) -> None:
        """Compute the logits, and with `gradients` dZ and the gradients of the output layer.

        Parameters
        ----------
        parameters : Parameters
        Z : array of shape (m, n)
            A row per sample in C order, with or without gaps between rows. With `gradients`, dZ overwrites it.
        logits : array of shape (m, n_out)
        parts : array of shape (tiles, m n_out), optional
            Memory for parts of the logits, where there are several tiles of units.
        output_layer : OutputLayer
        Y, sample_weight : array, optional
        gradients : Parameters, optional
            Receives db of the last hidden layer, dW and db of the output layer.
        """
        if parts is not None:
            self._launch(parameters, Z, parts, output_layer)
            sum_rows(self._launcher, parts, logits.reshape(-1))
        if parts is None or gradients is not None:
            self._launch(parameters, Z, logits, output_layer, Y, sample_weight, gradients)

    def _launch(
        self,
        parameters: Parameters,
        Z: Array,
        logits: Array,
        output_layer: OutputLayer,
        Y: Array | None = None,
        sample_weight: Array | None = None,
        gradients: Parameters | None = None,
    ) -> None:
        """One pass over Z. With several tiles it either writes parts of the logits, or reads the logits."""
        m = Z.shape[0]
        line = Z.strides[0] if m > 1 else 0
        packed = self._width <= 4 and Z.data.ptr % PACK_BYTES == 0 and line % PACK_BYTES == 0
        kernel, shape = self._kernel(packed), self._shape
        if packed not in self._blocks_at_a_time:
            at_a_time = self._launcher.blocks_at_a_time(kernel, shape.shared_bytes) // self.tiles
            self._blocks_at_a_time[packed] = max(1, min(self._most_blocks, at_a_time))
        most_blocks = self._blocks_at_a_time[packed]
        samples = samples_of(m, shape, self._width, most_blocks)
        blocks = min(most_blocks, -(-m // (THREADS // shape.team * samples)))
        b, b2 = parameters.bias(-2), parameters.bias(-1)
        tail = None if gradients is None else gradients.flat[-self._length :]
        sums = self._partial if tail is None or blocks > 1 else tail
        arguments = (
            Z, np.int64(line // self._item), pointer(b), parameters.weights[-1], pointer(b2),
            *strided(Y if gradients is not None else None), *strided(sample_weight)[::2], logits, sums, np.int64(m),
            np.int32(self._n), np.int32(self._n_out), output_layer.loss, np.int32(shape.team.bit_length() - 1),
            np.int32(samples), np.int32(self.tiles > 1 and gradients is not None), output_layer.most,
        )  # fmt: skip
        kernel((blocks, self.tiles), (THREADS,), arguments, shared_mem=shape.shared_bytes)
        if tail is not None and blocks > 1:
            sum_rows(self._launcher, self._partial[:blocks], tail)

    def _kernel(self, packed: bool) -> Any:
        f, dtype = self._architecture.hidden_activation, self._dtype
        pack, layout = (PACK_BYTES // self._item, "packed") if packed else (1, "strided")
        name = f"hidden_layer_{self._width}_{f}_{dtype}_{layout}"
        one = f"{self._width},{f.upper()},{f},{C_TYPES[dtype]},{dtype},{pack},{layout}"
        return self._launcher.kernel("hidden_layer.cu", name, one, self._shape.shared_bytes)
