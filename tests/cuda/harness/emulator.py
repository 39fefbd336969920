"""Compile CUDA sources with g++ and run their kernels on the CPU.

The source that runs is the one that a GPU runs, unchanged; ``cuda_on_cpu.h`` stands in for the compiler's own words. A
fiber runs for every CUDA thread of a block. `order` says in which order: a result that depends on it is a race.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from harness.kept import kept

ORDERS = ("forward", "reverse", "shuffled")
COMPILER = shutil.which("g++")

_FOLDER = Path(__file__).parent
_HEADER, _RUNTIME = _FOLDER / "cuda_on_cpu.h", _FOLDER / "emulator.cpp"
_CLUSTERED = "blocks_of_a_cluster"
# Words of CUDA's that stand between `extern "C"` and the name of a kernel.
_WORDS = [f"-D__cluster_dims__(...)={_CLUSTERED}", "-D__launch_bounds__(...)=", "-D__global__="]
_KERNEL = re.compile(rf'extern\s+"C"\s+void\s+(?:({_CLUSTERED})\s+)?(?!__)(\w+)\s*\(')
_FLAGS = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-fno-threadsafe-statics", "-fno-strict-aliasing"]
_WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
_RUNTIME_FLAGS = [*_FLAGS, *_WARNINGS, "-O2"]
# emulator.cpp has the functions that the sanitizers make the code call; their own libraries are not needed.
_KERNEL_FLAGS = [
    *_FLAGS,
    *_WARNINGS,
    "-Og",
    "-fsanitize=alignment,bounds,signed-integer-overflow,shift",
    "-fsanitize=thread",
    "--param=tsan-instrument-func-entry-exit=0",
]
# A static variable in shared memory: its type, its name, its dimensions.
_STATIC = re.compile(r"(?<!extern )\b__shared__\s+((?:\w+::)*\w+)\s+(\w+)((?:\[[^\]]*\])*)\s*;")
_OTHER_STATIC = re.compile(r"(?<!extern )\b__shared__.*")
_LARGEST_GRID = (2**31 - 1, 65535, 65535)
_LARGEST_BLOCK = (1024, 1024, 64)
_MOST_THREADS = 1024
_MOST_SHARED = 227 * 1024
_LARGEST_CLUSTER = 8
_order = ORDERS[0]


@contextlib.contextmanager
def thread_order(order):
    """Run the kernels of the block in this order of blocks and threads."""
    global _order
    before, _order = _order, ORDERS[ORDERS.index(order)]
    try:
        yield
    finally:
        _order = before


class Counts(NamedTuple):
    """Maps of an allocation, by byte: whether a launch read it, whether it wrote it, and which block did."""

    loaded: np.ndarray
    stored: np.ndarray
    writer: np.ndarray

    @classmethod
    def of(cls, n_bytes):
        return cls(*(np.zeros(n_bytes, dtype) for dtype in (np.uint8, np.uint8, np.uint32)))


class _Watched(ctypes.Structure):
    """As in ``accesses.h``."""

    _fields_ = [
        ("begin", ctypes.c_size_t),
        ("end", ctypes.c_size_t),
        *((name, ctypes.c_void_p) for name in ("written", *Counts._fields)),
    ]


class Kernel:
    """A kernel compiled for the CPU, called as CuPy's RawKernel is: ``kernel(grid, block, args)``.

    Every argument is checked against the kernel's parameters: their number, kind and size. Arrays are anything with
    ``data.ptr``; numbers must be numpy scalars. `cluster` is the number of blocks of a cluster, along x.
    """

    def __init__(self, library, name, cluster=1):
        self.name = name
        self.cluster = cluster
        self.library = library
        self._run = library[f"run_{name}"]
        self._run.restype = ctypes.c_char_p
        text = ctypes.create_string_buffer(256)
        library[f"describe_{name}"](text)
        self.parameters = re.findall("..", text.value.decode())

    def __call__(self, grid, block, args, shared_mem=0, counts=None):
        """Run it. `counts`, a dictionary, takes the `Counts` of every allocation of the arguments, by address."""
        grid, block = (*grid, 1, 1)[:3], (*block, 1, 1)[:3]
        assert all(1 <= n <= limit for n, limit in zip(grid, _LARGEST_GRID, strict=True)), f"{self.name}: grid {grid}"
        assert all(1 <= n <= limit for n, limit in zip(block, _LARGEST_BLOCK, strict=True)), f"{self.name}: {block}"
        assert math.prod(block) <= _MOST_THREADS, f"{self.name}: {math.prod(block)} threads in a block"
        assert 0 <= shared_mem <= _MOST_SHARED, f"{self.name}: {shared_mem} bytes of shared memory"
        assert 1 <= self.cluster <= _LARGEST_CLUSTER, f"{self.name}: clusters of {self.cluster} blocks"
        assert grid[0] % self.cluster == 0, f"{self.name}: grid {grid}, clusters of {self.cluster} blocks"
        assert len(args) == len(self.parameters), f"{self.name}: {len(args)} of {len(self.parameters)} arguments"
        values = [self._value(i, x) for i, x in enumerate(args)]
        pointers = (ctypes.c_void_p * len(values))(*[value.ctypes.data for value in values])
        size3 = ctypes.c_uint * 3
        order, shared = ORDERS.index(_order), ctypes.c_size_t(shared_mem)
        with self._watched(args, counts):
            complaint = self._run(size3(*grid), size3(*block), self.cluster, order, shared, pointers)
        assert complaint is None, f"{self.name}: {complaint.decode()}{self._unwritten(args)}"

    @contextlib.contextmanager
    def _watched(self, args, counts):
        """Let accesses to the allocations of the arguments be noted."""
        memories = {x.memory.address: x.memory for x in args if hasattr(x, "memory") and x.memory.piece.size}
        watched = (_Watched * len(memories))()
        for entry, (address, memory) in zip(watched, memories.items(), strict=True):
            maps = [memory.written.map]
            if counts is not None:
                maps += counts.setdefault(address, Counts.of(memory.piece.size))
            pointers = [x.ctypes.data for x in maps] + [None] * (4 - len(maps))
            entry.__init__(address, address + memory.piece.size, *pointers)
        assert self.library.watch(watched, len(watched)), f"{self.name}: {len(watched)} allocations"
        try:
            yield
        finally:
            self.library.watch(None, 0)

    def _unwritten(self, args):
        """Which number it was that nobody had written: the argument it belongs to, and where it lies there."""
        at = ctypes.c_size_t.in_dll(self.library, "unwritten")
        address, at.value = at.value, 0
        begins = [(x.data.ptr, i) for i, x in enumerate(args) if hasattr(x, "memory") and x.data.ptr <= address]
        if not begins:
            return ""
        begin, i = max(begins)
        return f": argument {i}, at byte {address - begin}"

    def _value(self, i, x):
        """The argument's bytes, as an array of one element."""
        kind, size = self.parameters[i]
        what = f"{self.name}: argument {i} of {len(self.parameters)}"
        if hasattr(x, "data") and hasattr(x.data, "ptr"):
            assert kind == "p", f"{what} is an array, the parameter {kind}{size}"
            return np.array([x.data.ptr], np.uint64)
        assert isinstance(x, np.generic), (
            f"{what}: expected a numpy scalar, got {type(x).__name__}: its size is a guess"
        )
        null = kind == "p" and x.dtype == np.uint64 and x == 0
        assert null or (x.dtype.kind.replace("u", "i") == kind and x.itemsize == int(size)), (
            f"{what} is {x.dtype}, the parameter {kind}{size}"
        )
        return np.array([x])


class Module:
    """A source compiled for the CPU."""

    def __init__(self, library, names, clustered):
        self._library = library
        self.names = names
        self._clustered = clustered

    def get_function(self, name, options=()):
        """The kernel of this name; ``-DCLUSTER=4`` among the options says how many blocks its clusters have."""
        if name not in self.names:
            raise KeyError(f"no kernel {name!r}; there are: {', '.join(self.names)}")
        sizes = [int(option.removeprefix("-DCLUSTER=")) for option in options if option.startswith("-DCLUSTER=")]
        assert len(sizes) == (name in self._clustered), f"{name}: sizes of clusters, {sizes}"
        return Kernel(self._library, name, *sizes)


def compile_source(code, options=()):
    """The module of a CUDA source; compiled once per process. Of the options, -D counts."""
    return _compile(code, tuple(option for option in options if option.startswith("-D")))


@functools.cache
def _compile(code, defines):
    if COMPILER is None:
        raise RuntimeError("g++ is not installed")
    with tempfile.TemporaryDirectory() as folder:
        unit = Path(folder, "unit.cpp")
        unit.write_text(code)
        kernels = _KERNEL.findall(_gxx("-E", "-P", *_WORDS, *defines, unit))
        names, clustered = [name for _, name in kernels], {name for mark, name in kernels if mark}
        code = _STATIC.sub(r"auto& \2 = static_shared<\1\3>([] {});", code)
        if other := _OTHER_STATIC.search(code):
            raise ValueError(f"expected one static variable in shared memory a declaration; got {other[0]}")
        text = f'#include "{_HEADER.name}"\n#line 1\n{code}\n' + "\n".join(f"ENTRY({name})" for name in names) + "\n"

        def make(library):
            unit.write_text(text)
            # Compiled and linked in two steps: linking with -fsanitize would ask for the sanitizer's library.
            _gxx(*_KERNEL_FLAGS, *defines, "-I", _FOLDER, "-c", unit, "-o", f"{unit}.o")
            _gxx("-shared", "-Wl,--no-undefined", f"{unit}.o", "-x", "none", runtime, "-o", library)

        runtime, version = _runtime()
        library = kept([text, *_KERNEL_FLAGS, *defines, version], make)
    return Module(ctypes.PyDLL(str(library)), names, clustered)


@functools.cache
def _runtime():
    """What runs the kernels, compiled; and a text that changes with it."""
    version = "\0".join(
        [*(path.read_text() for path in sorted([*_FOLDER.glob("*.h"), _RUNTIME])), *_RUNTIME_FLAGS, _gxx("--version")]
    )
    return kept([version], lambda path: _gxx(*_RUNTIME_FLAGS, "-c", _RUNTIME, "-o", path)), version


def _gxx(*arguments):
    done = subprocess.run([COMPILER, *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"g++ failed:\n{done.stderr[:4000]}")
    return done.stdout
