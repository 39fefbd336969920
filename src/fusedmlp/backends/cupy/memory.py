"""How much memory a GPU has left, and giving back what CuPy keeps of it."""

from __future__ import annotations

from typing import Any

RESIDENT_SHARE = 0.4
"""Of the free memory, for X, Y and weights: a validation split copies all of them once, and passes need room too."""


def free_bytes(cupy: Any) -> int:
    """What can still be allocated on the current GPU, outside CuPy's pool and inside it, up to the pool's own limit."""
    pool = cupy.get_default_memory_pool()
    free = cupy.cuda.runtime.memGetInfo()[0] + pool.free_bytes()
    limit = pool.get_limit()  # 0: none
    return min(free, limit - pool.used_bytes()) if limit else free


def release(cupy: Any) -> None:
    """Give back the blocks of CuPy's pool that are free."""
    cupy.get_default_memory_pool().free_all_blocks()
