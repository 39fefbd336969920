"""Work that several processes share without a message: who does what, and the results for all."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from fusedmlp.distributed.peers import Peers

Result = TypeVar("Result")


def owners_of(work: Sequence[float], ranks: int) -> list[int]:
    """The rank that does each piece of work, so that all have about as much: the largest pieces are dealt out first.

    Parameters
    ----------
    work : sequence of float
        How long each piece takes, in any unit.
    ranks : int
    """
    loads = [(0.0, 0, rank) for rank in range(ranks)]
    owners = [0] * len(work)
    for piece in sorted(range(len(work)), key=lambda piece: -work[piece]):
        load, count, rank = heapq.heappop(loads)
        owners[piece] = rank
        heapq.heappush(loads, (load + work[piece], count + 1, rank))
    return owners


def agreed_owners(peers: Peers, work: Sequence[float]) -> list[int]:
    """`owners_of` by the estimates of rank 0."""
    return peers.from_first(owners_of(work, peers.size))


def exchanged(peers: Peers, own: Mapping[int, Result]) -> dict[int, Result]:
    """The results of all processes by the numbers of their pieces; those of this process are the same objects."""
    found: dict[int, Any] = {}
    for rank in range(peers.size):
        found |= peers.copied(own, rank)
    return found
