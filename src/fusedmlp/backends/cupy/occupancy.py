"""How many blocks of a kernel a GPU runs at a time, from CUDA's driver. CuPy has no call for it.

A grid with one block, or cluster, more than that takes twice as long: the last ones run alone. The number is the
device's: some of a GPU's groups of multiprocessors are smaller than others, so that fewer clusters fit than a count of
multiprocessors promises.
"""

from __future__ import annotations

import ctypes
import sys
from ctypes import POINTER, Structure, byref, c_char_p, c_int, c_size_t, c_uint, c_void_p
from typing import Any

_CLUSTER_DIMENSION = 4  # CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION


class LaunchAttribute(Structure):
    """CUlaunchAttribute: a number that says which, and a union of 64 bytes, here the dimensions of a cluster."""

    _fields_ = [("id", c_int), ("pad", c_int), ("x", c_uint), ("y", c_uint), ("z", c_uint), ("rest", c_uint * 13)]


class LaunchConfig(Structure):
    """CUlaunchConfig."""

    _fields_ = [
        ("grid", c_uint * 3),
        ("block", c_uint * 3),
        ("shared_bytes", c_uint),
        ("stream", c_void_p),
        ("attributes", POINTER(LaunchAttribute)),
        ("n_attributes", c_uint),
    ]


def open_library() -> Any:
    """CUDA's driver, which CuPy has loaded before."""
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")


def blocks_at_a_time(function: Any, threads: int, shared_bytes: int, multiprocessors: int) -> int:
    """Blocks of a kernel that run at the same time on the current GPU.

    Parameters
    ----------
    function : int
        The CUfunction.
    threads : int
        Threads of a block.
    shared_bytes : int
        Dynamic shared memory of a block.
    multiprocessors : int

    Raises
    ------
    RuntimeError
        The driver refuses, or not one block fits.
    """
    blocks = c_int()
    name = "cuOccupancyMaxActiveBlocksPerMultiprocessor"
    _call(name, byref(blocks), c_void_p(function), c_int(threads), c_size_t(shared_bytes))
    return _at_least_one(name, blocks.value) * multiprocessors


def clusters_at_a_time(function: Any, cluster: int, threads: int, shared_bytes: int) -> int:
    """Clusters of so many blocks of a kernel that run at the same time; the rest is as in `blocks_at_a_time`."""
    attribute = LaunchAttribute(id=_CLUSTER_DIMENSION, x=cluster, y=1, z=1)
    config = LaunchConfig(
        grid=(cluster, 1, 1),
        block=(threads, 1, 1),
        shared_bytes=shared_bytes,
        attributes=ctypes.pointer(attribute),
        n_attributes=1,
    )
    clusters = c_int()
    name = "cuOccupancyMaxActiveClusters"
    _call(name, byref(clusters), c_void_p(function), byref(config))
    return _at_least_one(name, clusters.value)


def _call(name: str, *arguments: Any) -> None:
    function = getattr(open_library(), name)
    function.restype = c_int
    status = function(*arguments)
    if status:
        raise RuntimeError(f"{name} failed: {_name_of(status)}")


def _name_of(status: int) -> str:
    text = c_char_p()
    open_library().cuGetErrorName(c_int(status), byref(text))
    return (text.value or b"error %d" % status).decode()


def _at_least_one(name: str, number: int) -> int:
    if number < 1:
        raise RuntimeError(f"{name}: the kernel does not fit this GPU")
    return number
