"""The free memory of a GPU, and giving back what CuPy's pool keeps."""

from __future__ import annotations

from typing import Any

RESIDENT_SHARE = 0.4
"""The share of free memory that X, Y and weights may take. Passes need memory too, and some calls copy the samples."""


def free_bytes(cupy: Any) -> int:
    """The bytes that can be allocated on the current GPU: outside CuPy's pool and inside it, up to the pool's limit."""
    pool = cupy.get_default_memory_pool()
    free = cupy.cuda.runtime.memGetInfo()[0] + pool.free_bytes()
    limit = pool.get_limit()  # 0: none
    return min(free, limit - pool.used_bytes()) if limit else free


def release(cupy: Any) -> None:
    """Give back the blocks of CuPy's pool that are free."""
    cupy.get_default_memory_pool().free_all_blocks()
