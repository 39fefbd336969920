"""Launches of ``kernels/narrow_step.cu`` and ``narrow_cluster.cu``: the whole step of a narrow network."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fusedmlp.backends.cupy.launch import C_TYPES, NULL, THREADS, Launcher, fitting, strided
from fusedmlp.backends.cupy.output_layer import OutputLayer
from fusedmlp.backends.cupy.sums import sum_rows
from fusedmlp.model.activations import HIDDEN_ACTIVATIONS, Array
from fusedmlp.model.architecture import Architecture
from fusedmlp.model.parameters import Parameters

SAMPLES = 32
"""Samples of a tile."""

_WARPS = THREADS // 32
_MOST_UNITS = 1024
_WIDTHS = (1, 4)
_INPUTS_OF_A_THREAD = (2, 4, 8, 16)
_MOST_TILES = 8
_MBARRIERS_BYTES = 2 * 8

KINDS = {"float32": "STRICT", "tf32": "TF32", "tf32x3": "TF32X3", "float64": "STRICT"}
"""The arithmetics of products (``arithmetics.cuh``) -> their names in the sources."""


class Variant(NamedTuple):
    """One of the kernels: its template arguments, with the names that they have in the source."""

    N: int
    R: int
    C: int
    arithmetic: str
    """"float32", "tf32", "tf32x3" or "float64"."""
    clustered: bool = False
    """Whether the blocks for the units run as a cluster. Without, several of them need a forward pass first."""

    @property
    def units(self) -> int:
        """The units of a block."""
        return 32 * self.C

    @property
    def dtype(self) -> str:
        """The dtype of the network."""
        return "float64" if self.arithmetic == "float64" else "float32"

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block: `SharedArrays` in the source, and those of `ClusterStep`."""
        tensor_cores, item = KINDS[self.arithmetic] != "STRICT", np.dtype(self.dtype).itemsize
        pad, inputs = 16 // item, 8 * self.R
        x_pitch = inputs + pad
        w_pitch = self.units + (2 if tensor_cores else 0)
        d_pitch = self.units + (2 if tensor_cores else pad)
        outputs = 2 * _WARPS * SAMPLES * self.N
        n = SAMPLES * (x_pitch + d_pitch) + self.units * (1 + self.N) + outputs + inputs * w_pitch
        if self.clustered:
            n += SAMPLES * (x_pitch + 2 * _MOST_TILES * self.N)
        return item * n + self.clustered * _MBARRIERS_BYTES

    @property
    def exists(self) -> bool:
        """Whether the source has it; the others need more registers than there are."""
        if self.arithmetic == "float64":
            return self.C == 4 and (8 if self.N == 1 else 4) >= self.R
        if self.arithmetic == "tf32x3" and self.clustered and (self.N, self.R) == (4, 8):
            return False
        # Clusters: only the variants with the most units a block.
        return self.C * self.R <= 64 and not (self.clustered and self.C == 4 and self.R < 16)

    @property
    def blocks_at_a_time(self) -> int:
        """Blocks that a multiprocessor runs at the same time: `steps_at_a_time`, `blocks_at_a_time` in the sources."""
        tf32 = self.arithmetic == "tf32"
        if self.clustered:
            return 2 if tf32 and self.N == 1 and self.R <= 4 else 1
        M = SAMPLES // 8
        numbers = self.R * self.C + self.C * self.N + self.C + self.N + M * self.C + self.R
        return 2 if np.dtype(self.dtype).itemsize // 4 * numbers <= (88 if tf32 else 70) else 1

    def tiles(self, n: int) -> int:
        """The number of blocks for n units."""
        return -(-n // self.units)


def variant_of(architecture: Architecture, arithmetic: str, shared_bytes: int, clusters: bool) -> Variant | None:
    """The kernel for a network, or None.

    Parameters
    ----------
    architecture : Architecture
    arithmetic : {"float32", "tf32", "tf32x3", "float64"}
        One for the architecture's dtype.
    shared_bytes : int
        The most shared memory that a block can use.
    clusters : bool
        Whether the GPU has clusters of blocks.
    """
    n_in, n, *above = architecture.layer_sizes
    N, R = fitting(_WIDTHS, architecture.n_outputs), fitting(_INPUTS_OF_A_THREAD, -(-n_in // 8))
    if len(above) != 1 or n > _MOST_UNITS or N is None or R is None:
        return None
    for C in (4,) if n <= 32 * 4 else (8, 4):
        for clustered in (True, False) if clusters and n > 32 * C else (False,):
            variant = Variant(N, R, C, arithmetic, clustered)
            if variant.exists and variant.shared_bytes <= shared_bytes:
                return variant
    return None


def why_no_variant(architecture: Architecture, shared_bytes: int) -> str:
    """What a network is too large for, if `variant_of` has no kernel for it."""
    n_in, *hidden, n_out = architecture.layer_sizes
    if len(hidden) != 1:
        return f"its kernels are for one hidden layer; the network has {len(hidden)}"
    limits = ((n_in, 8 * _INPUTS_OF_A_THREAD[-1], "inputs"), (hidden[0], _MOST_UNITS, "hidden units"))
    for size, most, what in (*limits, (n_out, _WIDTHS[-1], "outputs")):
        if size > most:
            return f"its kernels have at most {most:,} {what}; the network has {size:,}"
    if architecture.dtype == "float64" and n_in > (most := 64 if n_out == 1 else 32):
        outputs = "1 output" if n_out == 1 else f"up to {_WIDTHS[-1]} outputs"
        return f"with {outputs} its kernels in float64 have at most {most} inputs; the network has {n_in}"
    return f"its kernels for this network need more shared memory than the {shared_bytes:,} bytes that a block can have"


class NarrowStep:
    """The kernels for an architecture, with memory for the sums of their blocks.

    Parameters
    ----------
    launcher : Launcher
    cupy : module
    architecture : Architecture
    variant : Variant

    Attributes
    ----------
    tiles : int
        The number of blocks for the units.
    needs_logits : bool
        Whether a step reads the logits, which `forward` computes.
    """

    def __init__(self, launcher: Launcher, cupy: Any, architecture: Architecture, variant: Variant) -> None:
        self._launcher, self._variant = launcher, variant
        self._n_in, self._n, self._n_out = architecture.layer_sizes
        self._activation = np.int32(HIDDEN_ACTIVATIONS[architecture.hidden_activation].code)
        self.tiles = variant.tiles(self._n)
        self.needs_logits = self.tiles > 1 and not variant.clustered
        self._most_ranges: dict[str, int] = {}
        self._kernel = "cluster" if variant.clustered else "step"
        most = self._ranges_at_a_time(self._kernel)
        self._partial = cupy.empty((most, architecture.n_parameters), architecture.dtype)

    def forward(self, parameters: Parameters, X: Array, logits: Array, parts: Array | None) -> None:
        """The logits (m, n_out), a row per sample.

        Parameters
        ----------
        parameters : Parameters
        X : array of shape (n_in, m)
            Of any strides.
        logits : array of shape (m, n_out)
        parts : array of shape (tiles, m n_out), or None
            Memory for parts of the logits, where there are several tiles of units.
        """
        m = X.shape[1]
        arguments = (*self._network(parameters, X), logits if parts is None else parts, np.int64(m), *self._sizes())
        self._launch("forward", m, arguments)
        if parts is not None:
            sum_rows(self._launcher, parts, logits.reshape(-1))

    def step(
        self,
        parameters: Parameters,
        X: Array,
        Y: Array,
        sample_weight: Array | None,
        logits: Array,
        gradients: Parameters,
        output_layer: OutputLayer,
    ) -> None:
        """Write Σ w ∂j/∂parameters into `gradients`; read the logits if `needs_logits`, else write them."""
        m = X.shape[1]
        ranges = self._ranges(self._kernel, m)
        sums = gradients.flat if ranges == 1 else self._partial
        arguments = (
            *self._network(parameters, X), *strided(Y), *strided(sample_weight)[::2], logits, sums,
            np.int64(self._partial.shape[1]), np.int64(m), *self._sizes(), output_layer.loss, output_layer.most,
        )  # fmt: skip
        self._launch(self._kernel, m, arguments)
        if sums is self._partial:
            sum_rows(self._launcher, self._partial[:ranges], gradients.flat)

    def _network(self, parameters: Parameters, X: Array) -> list[Any]:
        x_step, x_line = (np.int64(stride // X.itemsize) for stride in X.strides)
        (W1, W2), biases = parameters.weights, parameters.biases
        b1, b2 = biases or (NULL, NULL)
        return [X, x_line, x_step, W1, b1, W2, b2]

    def _sizes(self) -> tuple[Any, ...]:
        return np.int32(self._n_in), np.int32(self._n), np.int32(self._n_out), self._activation

    def _ranges(self, kernel: str, m: int) -> int:
        """The number of ranges that m samples are cut into."""
        return min(self._ranges_at_a_time(kernel), -(-m // SAMPLES))

    def _ranges_at_a_time(self, kernel: str) -> int:
        """The largest number of ranges: the GPU runs all their blocks at the same time."""
        if kernel not in self._most_ranges:
            function, shared_bytes = self._function(kernel)
            if kernel == "cluster":
                most = self._launcher.clusters_at_a_time(function, self.tiles, shared_bytes)
            else:
                most = self._launcher.blocks_at_a_time(function, shared_bytes) // self.tiles
            self._most_ranges[kernel] = max(1, most)
        return self._most_ranges[kernel]

    def _function(self, kernel: str) -> tuple[Any, int]:
        """The compiled kernel, and the shared memory of its blocks."""
        clustered = kernel == "cluster"
        variant = self._variant._replace(clustered=clustered)
        N, R, C, arithmetic, _ = variant
        function = self._launcher.kernel(
            "narrow_cluster.cu" if clustered else "narrow_step.cu",
            f"narrow_{kernel}_{N}_{R}_{C}_{arithmetic}",
            f"{N},{R},{C},{C_TYPES[variant.dtype]},{KINDS[arithmetic]},{arithmetic}",
            variant.shared_bytes,
            self.tiles if clustered else None,
        )
        return function, variant.shared_bytes

    def _launch(self, kernel: str, m: int, arguments: tuple[Any, ...]) -> None:
        function, shared_bytes = self._function(kernel)
        grid = self.tiles, self._ranges(kernel, m)
        function(grid, (THREADS,), arguments, shared_mem=shared_bytes)
