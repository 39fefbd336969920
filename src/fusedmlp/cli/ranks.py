"""A command that several processes run together under mpiexec: rank 0 speaks and writes for all."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from fusedmlp.cli.output import send_to_nowhere
from fusedmlp.distributed.launched import communicator

Result = TypeVar("Result")

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


def found_by_first(work: Callable[[], Result]) -> Result:
    """What rank 0 finds, which alone looks for it; its exception is raised in all processes."""
    comm = communicator()
    if comm is None:
        return work()
    from fusedmlp.distributed.peers import peers_of

    return peers_of(comm).by_first(work)


def named(message: str) -> str:
    """An error message with the rank that has it, where there are several.

    Rank 0 has most errors too. It ends the job with its own message, so that the others wait a moment.
    """
    if communicator.cache_info().currsize == 0 or communicator() is None or rank() == 0:
        return message
    time.sleep(_PATIENCE_SECONDS)
    return f"rank {rank()}: {message}"
