"""What ends a training in one process ends it in all, after the same batch."""

from __future__ import annotations

import pytest

from fusedmlp.distributed.cores import share_of
from mpi_jobs import answer


@pytest.mark.parametrize("backend", ["numpy", "numba-cpu"])
def test_all_ranks_end_together(backend):
    found = answer(2, "ending.py", backend)
    for same_weights, same_facts, _ in found.values():
        assert same_weights
        assert same_facts
    stopped, raised = found["deadline"][2]
    assert stopped.startswith("the deadline passed in epoch ")
    assert raised is None
    stopped, raised = found["interrupt"][2]
    assert stopped.startswith("interrupted in epoch ")
    assert raised == "KeyboardInterrupt"
    assert found["callback"][2] == ["rank 1 has had enough", None]


@pytest.mark.parametrize(
    ("rank", "cores", "quota", "threads"),
    [
        (0, ["0-7", "0-7"], None, 4),
        (1, ["0-3", "4-7"], None, 4),  # the launcher has bound them
        (2, ["0-3", "0-3", "4"], None, 1),
        (0, ["0-7"] * 3, None, 2),
        (0, ["0-1"] * 8, None, 1),
        (0, ["0-7", "0-7"], 3.5, 2),
        (0, ["0-7"], None, 8),
    ],
)
def test_ranks_of_a_node_share_its_cores(rank, cores, quota, threads):
    sets = []
    for text in cores:
        first, _, last = text.partition("-")
        sets.append(frozenset(range(int(first), int(last or first) + 1)))
    assert share_of(rank, sets, quota) == threads
