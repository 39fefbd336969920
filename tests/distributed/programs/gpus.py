"""Sums of gradients on GPUs, with arrays of the host in place of a GPU's, and an NCCL that is MPI's."""

from __future__ import annotations

import ctypes
import json
import sys
import types

import numpy as np
from mpi4py import MPI

from fusedmlp.distributed.gpu_sums import SumByNccl
from fusedmlp.distributed.phase import SumOverProcesses

COMM = MPI.COMM_WORLD
STREAM = 7


class Communicator:
    """cupy.cuda.nccl.NcclCommunicator."""

    def __init__(self, size, name, rank):
        assert (size, name, rank) == (COMM.Get_size(), "the name", COMM.Get_rank())

    def allReduce(self, source, target, count, kind, operation, stream):
        assert (source, operation, stream) == (target, "sum", STREAM)
        numbers = (ctypes.c_float if kind == "f4" else ctypes.c_double) * count
        COMM.Allreduce(MPI.IN_PLACE, np.frombuffer(numbers.from_address(source), kind))


class OnGpu:
    """As much of cupy.ndarray as a phase uses; what is in it cannot be seen but by `get`."""

    def __init__(self, numbers):
        self._numbers = numbers
        self.shape, self.size, self.dtype = numbers.shape, numbers.size, numbers.dtype
        self.data = types.SimpleNamespace(ptr=numbers.ctypes.data)

    def get(self, out):
        out[...] = self._numbers

    def set(self, numbers):
        self._numbers[...] = numbers


def install(own_gpus, available=True):
    """A CuPy whose processes have GPUs of their own, or share one."""
    nccl = types.SimpleNamespace(
        available=available, get_unique_id=lambda: "the name", NcclCommunicator=Communicator,
        NCCL_SUM="sum", NCCL_FLOAT32="f4", NCCL_FLOAT64="f8",
    )  # fmt: skip
    bus = f"0000:{COMM.Get_rank() if own_gpus else 0}"
    runtime = types.SimpleNamespace(getDevice=lambda: 0, deviceGetPCIBusId=lambda device: bus)
    stream = types.SimpleNamespace(ptr=STREAM)
    cuda = types.SimpleNamespace(nccl=nccl, runtime=runtime, get_current_stream=lambda: stream)
    sys.modules["cupy"] = types.SimpleNamespace(cuda=cuda)
    sys.modules["cupyx"] = types.SimpleNamespace(empty_pinned=np.empty)


results = {}
for case, own_gpus, available in (("own", True, True), ("shared", False, True), ("no NCCL", True, False)):
    install(own_gpus, available)
    for dtype in ("float32", "float64"):
        phase = SumOverProcesses(COMM.Dup(), dtype)
        phase.begin()
        for step in range(2):
            numbers = np.arange(5, dtype=dtype) * (COMM.Get_rank() + 1) + step
            sums = np.array([1.0, 2.0, 3.0])
            phase.apply(OnGpu(numbers), sums)
            assert sums.tolist() == [2.0, 4.0, 6.0]
            assert numbers.tolist() == [3.0 * i + 2 * step for i in range(5)]
        results[f"{case}, {dtype}"] = isinstance(phase._sum_on_gpus, SumByNccl)
if COMM.Get_rank() == 0:
    print(json.dumps(results))
