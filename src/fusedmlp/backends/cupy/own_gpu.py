"""A GPU of its own for each process of a node that mpiexec has started."""

from __future__ import annotations

import logging
import os
from typing import Any

LOCAL_RANK_VARIABLES = ("MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID")
"""What MPICH's mpiexec, Open MPI's, MVAPICH's and Slurm's srun tell a process of its place among those of its node."""

_log = logging.getLogger("fusedmlp")


def take_own_gpu(cupy: Any) -> None:
    """Make another GPU than the first one current, where several processes of a node see several GPUs.

    Nothing is changed where the script has chosen a GPU already, or where CUDA_VISIBLE_DEVICES shows one alone.
    """
    place = max((int(text) for text in map(_variable, LOCAL_RANK_VARIABLES) if text.isdecimal()), default=0)
    runtime = cupy.cuda.runtime
    count = runtime.getDeviceCount()
    if count < 2 or runtime.getDevice() != 0 or place % count == 0:
        return
    runtime.setDevice(place % count)
    _log.info("process %d of this node uses GPU %d of %d", place, place % count, count)


def _variable(name: str) -> str:
    return os.environ.get(name, "").strip()
