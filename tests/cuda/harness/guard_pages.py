"""Run the kernels on arrays that lie directly beside forbidden memory: a stray access ends the process."""

from __future__ import annotations

import ctypes
import itertools
import mmap
import resource
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness import fake_cupy

PAGE = mmap.PAGESIZE
_mappings = []


def fenced(x, side):
    """x on the fake GPU: its last byte before a forbidden page ("end"), or its first one behind it ("start")."""
    room = -(-x.nbytes // PAGE) * PAGE
    mapping = mmap.mmap(-1, room + PAGE)
    _mappings.append(mapping)
    address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
    forbidden, offset = (address + room, room - x.nbytes) if side == "end" else (address, PAGE)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(forbidden), ctypes.c_size_t(PAGE), 0):
        raise OSError(ctypes.get_errno(), "mprotect")
    order = "F" if x.flags.fnc else "C"
    array = np.ndarray(x.shape, x.dtype, mapping, offset, order=order)
    array[...] = x
    return fake_cupy.ndarray(array, fake_cupy.Allocation(0))


def main():
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.modules["cupy"] = cupy = fake_cupy.make()
    from fusedmlp.backends.cupy import CupyBackend

    backend = CupyBackend()
    cases = itertools.product(
        ("end", "start"), ("float32", "float64"), "CF", ((1, 1), (3, 5), (8, 16), (5, 67), (7, 1), (1, 7)), (1, 3, 9)
    )
    for side, dtype, order, (n, m), n_out in cases:
        shapes = ((n, n_out), (n_out, m), (n, m), (n, m), (n, 1))
        W, dZ, A, out, b = (fenced(np.ones(shape, dtype, order), side) for shape in shapes)
        backend.fused_backward(W, dZ, A, "tanh", out=out)
        backend.activate(A, "sigmoid", b, out=out)
        backend.activate(A, "relu", out=A)
        # With A and out on a multiple of 16 bytes the packed kernels run; what they read by the element stays fenced.
        A, out = (fake_cupy.copied(np.ones((n, m), dtype), order) for _ in range(2))
        backend.fused_backward(W, dZ, A, "tanh", out=out)
        backend.activate(A, "sigmoid", b, out=out)
    print(f"{len(cupy.launches)} launches, all within bounds", flush=True)

    # The proof that this file notices: one row too many must end the process.
    too_long = fenced(np.ones((4, 4), np.float32), "end")
    too_long._raw = np.lib.stride_tricks.as_strided(too_long.host, (5, 4), too_long.strides)
    backend.activate(too_long, "relu", out=fenced(np.ones((5, 4), np.float32), "start"))


if __name__ == "__main__":
    main()
