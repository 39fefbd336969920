"""What the driver says of the kernels that a process has loaded."""

from __future__ import annotations


def check_loaded(launcher):
    """No kernel of a `Launcher` spills registers, and every one can run in blocks of 256 threads."""
    for (*_, name), kernel in launcher._kernels.items():
        assert kernel.local_size_bytes == 0, f"{name}: {kernel.local_size_bytes} bytes of local memory a thread"
        assert kernel.max_threads_per_block >= 256, f"{name}: blocks of {kernel.max_threads_per_block} threads at most"
