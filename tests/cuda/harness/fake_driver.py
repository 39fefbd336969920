"""A library that looks like CUDA's driver, for what `occupancy` asks: C functions that read the arguments."""

from __future__ import annotations

import types
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_int, c_size_t, c_void_p

from fusedmlp.backends.cupy.occupancy import LaunchConfig

SHARED_BYTES_OF_A_MULTIPROCESSOR, RESERVED_BYTES = 228 * 1024, 1024
THREADS_OF_A_MULTIPROCESSOR = 2048
INVALID_VALUE = 1
GROUP = 16


def make(multiprocessors, blocks_by_registers=2, missing_clusters=0):
    """The driver of a GPU whose multiprocessors run at most so many blocks of a kernel: its registers decide.

    Some clusters less run than its groups of multiprocessors promise.
    """

    def blocks_of(threads, shared_bytes):
        by_memory = SHARED_BYTES_OF_A_MULTIPROCESSOR // (shared_bytes + RESERVED_BYTES)
        return min(by_memory, THREADS_OF_A_MULTIPROCESSOR // threads, blocks_by_registers)

    @CFUNCTYPE(c_int, POINTER(c_int), c_void_p, c_int, c_size_t)
    def blocks(number, function, threads, shared_bytes):
        if not function:
            return INVALID_VALUE
        number[0] = blocks_of(threads, shared_bytes)
        return 0

    @CFUNCTYPE(c_int, POINTER(c_int), c_void_p, POINTER(LaunchConfig))
    def clusters(number, function, config):
        config = config[0]
        attribute = config.attributes[0]
        cluster = attribute.x
        right = function and config.n_attributes == 1 and attribute.id == 4 and (attribute.y, attribute.z) == (1, 1)
        if not right or config.grid[0] % cluster or not 1 <= cluster <= 8 or config.stream:
            return INVALID_VALUE
        here = blocks_of(config.block[0], config.shared_bytes)
        groups = [GROUP] * (multiprocessors // GROUP) + [multiprocessors % GROUP]
        number[0] = max(1, sum(here * group // cluster for group in groups) - missing_clusters)
        return 0

    @CFUNCTYPE(c_int, c_int, POINTER(c_char_p))
    def error_name(status, text):
        text[0] = b"CUDA_ERROR_INVALID_VALUE" if status == INVALID_VALUE else None
        return 0

    return types.SimpleNamespace(
        cuOccupancyMaxActiveBlocksPerMultiprocessor=blocks,
        cuOccupancyMaxActiveClusters=clusters,
        cuGetErrorName=error_name,
    )
