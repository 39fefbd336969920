"""A command that several processes run together under mpiexec: rank 0 speaks and writes for all."""

from __future__ import annotations

import time

from fusedmlp.cli.output import send_to_nowhere
from fusedmlp.distributed.launched import communicator

_PATIENCE_SECONDS = 1.0


def rank() -> int:
    """The number of this process among those that mpiexec has started; 0 where it is the only one."""
    comm = communicator()
    return 0 if comm is None else int(comm.Get_rank())


def quiet_unless_first() -> bool:
    """Whether this is rank 0; from now on, the others print errors alone."""
    first = rank() == 0
    if not first:
        send_to_nowhere()
    return first


def refuse_several(command: str) -> None:
    """Refuse a command that each of several processes would do by itself, over the others' files."""
    comm = communicator()
    if comm is not None:
        raise ValueError(f"{command}: expected one process; mpiexec has started {comm.Get_size()}")


def named(message: str) -> str:
    """An error message with the rank that has it, where there are several.

    Rank 0 has most errors too. It ends the job with its own message, so that the others wait a moment.
    """
    if communicator.cache_info().currsize == 0 or communicator() is None or rank() == 0:
        return message
    time.sleep(_PATIENCE_SECONDS)
    return f"rank {rank()}: {message}"
