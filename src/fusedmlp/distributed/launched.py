"""Whether mpiexec has started this process beside others, which a command of the command line then trains with."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

from fusedmlp.distributed import job
from fusedmlp.distributed.mpi import mpi

SIZE_VARIABLES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
"""What MPICH's mpiexec, Open MPI's, MVAPICH's and Slurm's srun tell the processes that they start."""


@cache
def communicator() -> Any:
    """The communicator of all processes that mpiexec has started; None, where it has started one or none.

    Raises
    ------
    MissingExtraError
        There are several, and mpi4py is not installed: each would train by itself.
    RuntimeError
        mpiexec belongs to another MPI library than mpi4py's.
    """
    sizes = [os.environ.get(variable, "") for variable in SIZE_VARIABLES]
    started = max((int(size) for size in sizes if size.isdecimal()), default=1)
    if started == 1:
        return None
    comm = mpi().COMM_WORLD
    if comm.Get_size() == 1:
        raise RuntimeError(
            f"{started} processes were started together, but MPI connects none of them: expected the mpiexec of "
            "mpi4py's own MPI library"
        )
    job.watch()
    return comm
