"""Counts the bytes that kernels and whole steps move to and from the memory of the fake GPU.

Of a kernel the distinct bytes that it reads, and those that it writes: what goes through memory if the caches hold all
that is used again. Of a product by cuBLAS and of CuPy's own operations, the operands and the result, each once.
"""

from __future__ import annotations

import contextlib
from typing import NamedTuple

from harness import fake_cupy
from harness.emulator import compile_source

from fusedmlp.backends.cupy import CupyBackend


class Moved(NamedTuple):
    """What an operation moved, in bytes."""

    name: str
    loaded: int
    stored: int


def run_and_count(kernel, grid, block, args, shared_mem=0):
    """Run a kernel; what it moved within the allocations of its arguments."""
    counts = {}
    kernel(grid, block, args, shared_mem, counts)
    loaded, stored = (sum(int(x[i].sum()) for x in counts.values()) for i in (0, 1))
    return Moved(kernel.name, loaded, stored)


class Ledger:
    """What was moved, operation by operation. While one is counted, those that it is made of are not."""

    def __init__(self):
        self.moves = []
        self._inside = False

    def clear(self):
        self.moves.clear()

    def of(self, beginning=""):
        """The bytes moved by the operations whose names begin so."""
        return sum(move.loaded + move.stored for move in self.moves if move.name.startswith(beginning))

    def table(self):
        """For a message: the operations with their bytes."""
        return "\n".join(f"{move.name:40} {move.loaded:12} {move.stored:12}" for move in self.moves)

    @contextlib.contextmanager
    def operation(self):
        """The list that the operation's own `Moved` goes into: a passing one inside of another."""
        outer, self._inside = self._inside, True
        try:
            yield [] if outer else self.moves
        finally:
            self._inside = outer

    def counted(self, name, function, operands):
        """A function that has its operands, those arguments that `operands` picks, and its result counted."""

        def call(*args, **kwargs):
            with self.operation() as moves:
                result = function(*args, **kwargs)
                read = sum(x.nbytes for x in operands(*args) if isinstance(x, fake_cupy.ndarray))
                written = result.nbytes if isinstance(result, fake_cupy.ndarray) else 0
                moves.append(Moved(name, read, written))
            return result

        return call


def count(monkeypatch, cupy):
    """The ledger of all that happens on a fake CuPy from now on; for backends that are made after this."""
    ledger = Ledger()

    class Kernel(fake_cupy.RawKernel):
        def _run(self, grid, block, args, shared_mem):
            with ledger.operation() as moves:
                moves.append(run_and_count(self._kernel, grid, block, args, shared_mem))

    class Module(cupy.RawModule):
        def get_function(self, name):
            kernel = compile_source(self._code).get_function(name, self.options)
            return Kernel(kernel, self.launches)

    monkeypatch.setattr(cupy, "RawModule", Module)
    array = fake_cupy.ndarray
    for owner, name, operands in (
        (CupyBackend, "matmul", lambda backend, a, b, out=None: (a, b)),
        (array, "__array_ufunc__", lambda x, ufunc, method, *inputs: inputs),
        (array, "_reduce", lambda x, *rest: (x,)),
        (array, "astype", lambda x, *rest: (x,)),
        *((cupy, name, lambda *inputs: inputs) for name in (*fake_cupy._UFUNCS, "where")),
    ):
        monkeypatch.setattr(owner, name, ledger.counted(name, getattr(owner, name), operands))
    monkeypatch.setattr(array, "__setitem__", _counted_assignment(ledger, array.__setitem__))

    def count_epilogue(name, loaded, stored):
        with ledger.operation() as moves:
            moves.append(Moved(name, loaded, stored))

    cupy.cublaslt.watch = count_epilogue
    return ledger


def _counted_assignment(ledger, function):
    def assign(x, key, value):
        with ledger.operation() as moves:
            function(x, key, value)
            moves.append(Moved("__setitem__", getattr(value, "nbytes", 0), x[key].nbytes))

    return assign
