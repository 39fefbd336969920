"""Launches of kernels. CuPy's RawKernel checks nothing, and a wrong dtype, stride or device gives a wrong result.

`check_matrix` checks an argument. `Launcher` compiles the sources, chooses the order in which a kernel goes through its
matrices (``kernels/common.cuh`` has the other half of that) and passes every number in the size that the kernel takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fusedmlp.backends.cupy import kernel_sources, occupancy
from fusedmlp.backends.cupy.cards import Card, card_of, derived
from fusedmlp.model.activations import Array
from fusedmlp.model.architecture import Architecture

DTYPES = ("float32", "float64")
THREADS = 256
"""Threads of a block; ``kernels/common.cuh`` has the same number."""

_BLOCKS_PER_MULTIPROCESSOR = 16  # twice as many as run at a time, to balance blocks of uneven work
LARGEST_GRID_Y = 65535
PACK_BYTES = 16
_ALWAYS_SHARED = 48 * 1024
_OPTIONS = ("-std=c++17",)
NULL = np.uint64(0)
C_TYPES = {"float32": "float", "float64": "double"}


def pointer(x: Array | None) -> Any:
    """A kernel's argument for an array; a null pointer for None."""
    return NULL if x is None else x


def strided(x: Array | None) -> list[Any]:
    """Pointer and strides, in elements, of a matrix with a column per sample; a null pointer for None."""
    if x is None:
        return [NULL, np.int64(0), np.int64(0)]
    return [x, *(np.int64(stride // x.itemsize) for stride in x.strides)]


class Operand(NamedTuple):
    """A matrix that a kernel reads element by element, in any layout; None is a null pointer."""

    name: str
    array: Array | None
    shape: tuple[int, int]


class Strided(NamedTuple):
    """An array as a kernel takes it: element (l, k) is ``array[l * line + k * step]``, in elements from its start."""

    array: Array | None
    line: int
    step: int

    def arguments(self) -> list[Any]:
        """Pointer and strides, as a kernel takes them."""
        return [pointer(self.array), np.int64(self.line), np.int64(self.step)]


def check_matrix(
    cupy: Any, name: str, x: Any, shape: tuple[int, int] | None = None, dtype: Any = None, written: bool = False
) -> None:
    """Check that `x` is a matrix of a supported dtype on the current GPU.

    Parameters
    ----------
    cupy : module
    name : str
        The argument's name, for the message.
    shape : (int, int), optional
        The expected shape.
    dtype : dtype, optional
        The expected dtype.
    written : bool
        Whether it is written to: then no two elements may share memory through a stride of 0.

    Raises
    ------
    TypeError
        It is not a CuPy array, or has another dtype.
    ValueError
        Its shape, strides or device are wrong.
    """
    if not isinstance(x, cupy.ndarray):
        raise TypeError(f"{name}: expected a cupy.ndarray; got {type(x).__module__}.{type(x).__name__}")
    if x.dtype not in DTYPES:
        raise TypeError(f"{name}: expected float32 or float64; got an array of {x.dtype}")
    if dtype is not None and x.dtype != dtype:
        raise TypeError(f"{name}: expected {np.dtype(dtype)}, like the other arrays; got {x.dtype}")
    if x.ndim != 2 or (shape is not None and x.shape != shape):
        expected = "2 axes, a column per sample" if shape is None else f"shape {shape}"
        raise ValueError(f"{name}: expected {expected}; got shape {x.shape}")
    device = cupy.cuda.runtime.getDevice()
    if x.data.device_id != device:
        raise ValueError(f"{name}: expected an array on the current GPU, {device}; it lies on GPU {x.data.device_id}")
    if any(stride % x.itemsize for stride in x.strides):
        raise ValueError(f"{name}: strides of {x.strides} bytes do not fit elements of {x.itemsize} bytes")
    if written and any(n > 1 and stride == 0 for n, stride in zip(x.shape, x.strides, strict=True)):
        raise ValueError(f"{name}: expected an array that can be written to; got a broadcast view, strides {x.strides}")


def fitting(sizes: Sequence[int], n: int) -> int | None:
    """The smallest of `sizes`, which ascend, that is at least n; None if there is none."""
    return next((size for size in sizes if n <= size), None)


def lies_in_columns(x: Array) -> bool:
    """Whether the elements of a column lie closer together than those of a row."""
    if 1 in x.shape:
        return x.shape[0] != 1
    return abs(x.strides[0]) < abs(x.strides[1])


def grid_and_block(lines: int, length: int, pack: int, multiprocessors: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """((blocks along a line, blocks over the lines), (threads along, threads over)).

    The kernels stride by the grid, so that any grid covers the matrix. This one fills the GPU with as few blocks as
    possible: a thread then uses the numbers that it keeps in registers for many lines.
    """
    packs = -(-length // pack)
    along = min(THREADS, 1 << (packs - 1).bit_length())
    over = THREADS // along
    blocks = multiprocessors * _BLOCKS_PER_MULTIPROCESSOR
    x = min(-(-packs // along), blocks)
    y = min(-(-lines // over), max(1, blocks // x), LARGEST_GRID_Y)
    return (x, y), (along, over)


class Launcher:
    """Compiles the CUDA sources when they are first needed, and launches their kernels on the current stream.

    Parameters
    ----------
    cupy : module
    """

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy
        self._modules: dict[tuple[str, tuple[str, ...]], Any] = {}
        self._kernels: dict[tuple[str, str | None, int | None, int | None, str], Any] = {}
        self._ranges: dict[tuple[Architecture, int], Array] = {}
        self._cards: dict[int, Card] = {}

    def launch(
        self,
        file: str,
        kernel: str,
        walked: Sequence[tuple[str, Array]],
        operands: Sequence[Operand] = (),
        scalars: Sequence[np.generic] = (),
    ) -> None:
        """Check the arguments and run a kernel on them.

        Parameters
        ----------
        file : str
            The source, e.g. "activations.cu".
        kernel : str
            The kernel's name without the dtype and the layout, e.g. "activate_tanh".
        walked : sequence of (name, array)
            The matrices of one shape (n, m) that the kernel goes through; it writes to the last.
        operands : sequence of Operand
            Other matrices that it reads.
        scalars : sequence of numpy scalars
            Numbers, each of the size that the kernel expects.

        Notes
        -----
        A kernel's parameters are the operands, the scalars, the walked matrices (each array with its two strides) and
        the two lengths. Lines are rows, or columns where the output is in column-major order: then the kernel is given
        the transposed problem, with the operands in reverse order, as in (W dZ)ᵀ = dZᵀ Wᵀ.
        """
        out = walked[-1][1]
        for name, x in walked:
            check_matrix(self._cupy, name, x, out.shape, out.dtype, written=x is out)
        for operand in operands:
            if operand.array is not None:
                check_matrix(self._cupy, operand.name, operand.array, operand.shape, out.dtype)
        for scalar in scalars:
            if not isinstance(scalar, np.generic):
                raise TypeError(f"{kernel}: expected numpy scalars; got {scalar!r} of type {type(scalar).__name__}")
        if out.size == 0:
            return

        along_rows = not lies_in_columns(out)
        lines, length = out.shape if along_rows else out.shape[::-1]
        read = [_strided(operand.array, along_rows) for operand in operands]
        read = read if along_rows else read[::-1]
        matrices = [_strided(x, along_rows) for _, x in walked]
        gapless = all(x.step == 1 and x.line == length for x in matrices)
        if gapless and all(x.array is None for x in read):
            lines, length = 1, lines * length
        packed = all(_is_packed(x, lines) for x in matrices)

        function = self.kernel(file, f"{kernel}_{out.dtype}_{'packed' if packed else 'strided'}")
        grid, block = grid_and_block(lines, length, PACK_BYTES // out.itemsize if packed else 1, self.multiprocessors())
        arguments = [argument for x in read for argument in x.arguments()]
        arguments += scalars
        arguments += [argument for x in matrices for argument in x.arguments()]
        function(grid, block, (*arguments, np.int64(lines), np.int64(length)))

    def launch_flat(
        self, file: str, kernel: str, vectors: Sequence[tuple[str, Array | None]], numbers: Sequence[Any]
    ) -> None:
        """Check the arguments and run a kernel that goes through vectors.

        Parameters
        ----------
        file, kernel : str
            As in `launch`.
        vectors : sequence of (name, array of shape (n,))
            Without gaps, of one dtype; None is a null pointer, the first is not None.
        numbers : sequence of numpy scalars and arrays
            The arguments after n.
        """
        first = vectors[0][1]
        assert first is not None
        for name, x in vectors:
            if x is not None:
                check_matrix(self._cupy, name, x[None], (1, first.size), first.dtype)
                if x.strides != (x.itemsize,) and x.size > 1:
                    raise ValueError(f"{name}: expected a vector without gaps; got strides {x.strides}")
        if first.size == 0:
            return
        packed = all(x is None or x.data.ptr % PACK_BYTES == 0 for _, x in vectors)
        function = self.kernel(file, f"{kernel}_{first.dtype}_{'packed' if packed else 'strided'}")
        pack = PACK_BYTES // first.itemsize if packed else 1
        most = self.multiprocessors() * _BLOCKS_PER_MULTIPROCESSOR
        blocks = min(most, -(-first.size // (pack * THREADS)))
        function((blocks,), (THREADS,), (*(pointer(x) for _, x in vectors), np.int64(first.size), *numbers))

    def kernel(
        self, file: str, name: str, one: str | None = None, shared_bytes: int = 0, cluster: int | None = None
    ) -> Any:
        """The compiled function; a source that does not compile is CuPy's CompileException.

        Parameters
        ----------
        file, name : str
        one : str, optional
            For a file with many kernels that compile slowly: the value of its macro ``ONE`` for this kernel alone.
        shared_bytes : int
            The most dynamic shared memory of a launch. More than 48 KiB has to be announced to the driver.
        cluster : int, optional
            The blocks of a cluster, the value of the macro ``CLUSTER``.
        """
        # CuPy loads a kernel on every device, so the announcement is made on every device.
        device = self._cupy.cuda.runtime.getDevice() if shared_bytes > _ALWAYS_SHARED else None
        key = file, one, cluster, device, name
        if key not in self._kernels:
            function = self._module(file, ONE=one, CLUSTER=cluster).get_function(name)
            if shared_bytes > _ALWAYS_SHARED:
                function.max_dynamic_shared_size_bytes = shared_bytes
            self._kernels[key] = function
        return self._kernels[key]

    def blocks_at_a_time(self, kernel: Any, shared_bytes: int) -> int:
        """Blocks of `THREADS` threads of a compiled function that the current GPU runs at the same time."""
        return occupancy.blocks_at_a_time(kernel.kernel.ptr, THREADS, shared_bytes, self.multiprocessors())

    def clusters_at_a_time(self, kernel: Any, cluster: int, shared_bytes: int) -> int:
        """Clusters of so many blocks, as `blocks_at_a_time`."""
        return occupancy.clusters_at_a_time(kernel.kernel.ptr, cluster, THREADS, shared_bytes)

    def _module(self, file: str, **macros: Any) -> Any:
        """The compiled source; macros that are None are not defined."""
        options = (*_OPTIONS, *(f"-D{macro}={value}" for macro, value in macros.items() if value is not None))
        if (file, options) not in self._modules:
            self._modules[file, options] = self._cupy.RawModule(code=kernel_sources.source(file), options=options)
        return self._modules[file, options]

    def weight_ranges(self, architecture: Architecture) -> Array:
        """(start, end) of every W in the flat vector, int64, on the current GPU."""
        key = architecture, self._cupy.cuda.runtime.getDevice()
        if key not in self._ranges:
            ranges = np.array(architecture.weight_ranges, np.int64)
            self._ranges[key] = self._cupy.asarray(ranges, blocking=True)
        return self._ranges[key]

    def multiprocessors(self) -> int:
        """The number of multiprocessors of the current GPU."""
        return self._attribute("cudaDevAttrMultiProcessorCount")

    def shared_bytes(self) -> int:
        """The most shared memory that a block can use."""
        return self._attribute("cudaDevAttrMaxSharedMemoryPerBlockOptin")

    def has_async_copies(self) -> bool:
        """Whether copies from global to shared memory run while a thread goes on: compute capability 8.0."""
        return self.card().has_async_copies

    def has_clusters(self) -> bool:
        """Whether blocks run in clusters."""
        return self.card().has_clusters

    def card(self) -> Card:
        """What the current GPU can do."""
        runtime = self._cupy.cuda.runtime
        device = runtime.getDevice()
        if device not in self._cards:
            name = runtime.getDeviceProperties(device)["name"]
            # In kHz and bits.
            clock, memory_clock, bus_bits = (
                self._attribute(f"cudaDevAttr{what}")
                for what in ("ClockRate", "MemoryClockRate", "GlobalMemoryBusWidth")
            )
            self._cards[device] = card_of(
                derived(
                    name.decode() if isinstance(name, bytes) else name,
                    int(self._cupy.cuda.Device(device).compute_capability),
                    self.multiprocessors(), self.shared_bytes(), 1e3 * clock, 1e3 * memory_clock, bus_bits,
                )
            )  # fmt: skip
        return self._cards[device]

    def _attribute(self, name: str) -> int:
        runtime = self._cupy.cuda.runtime
        return runtime.deviceGetAttribute(getattr(runtime, name), runtime.getDevice())


def _strided(x: Array | None, along_rows: bool) -> Strided:
    """The strides of a matrix in elements; 0 for an axis of length 1, so that a (n, 1) bias serves a whole row."""
    if x is None:
        return Strided(None, 0, 0)
    row, column = (0 if n == 1 else s // x.itemsize for n, s in zip(x.shape, x.strides, strict=True))
    return Strided(x, row, column) if along_rows else Strided(x, column, row)


def _is_packed(x: Strided, lines: int) -> bool:
    """Whether the kernel may read the lines 16 bytes at a time: all of them start on a multiple of 16."""
    array = x.array
    assert array is not None
    line_bytes = 0 if lines == 1 else x.line * array.itemsize
    return x.step == 1 and array.data.ptr % PACK_BYTES == 0 and line_bytes % PACK_BYTES == 0
