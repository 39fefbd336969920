"""Each process of a node takes a GPU of its own."""

from __future__ import annotations

import pytest
from harness import fake_cupy

from fusedmlp.backends.cupy.own_gpu import LOCAL_RANK_VARIABLES, take_own_gpu


@pytest.mark.parametrize(
    ("places", "gpus", "chosen", "taken"),
    [
        ({}, 4, 0, 0),
        ({"MPI_LOCALRANKID": "0"}, 4, 0, 0),
        ({"MPI_LOCALRANKID": "3"}, 4, 0, 3),
        ({"OMPI_COMM_WORLD_LOCAL_RANK": "5"}, 4, 0, 1),
        ({"SLURM_LOCALID": "2"}, 4, 0, 2),
        ({"MPI_LOCALRANKID": "2"}, 1, 0, 0),
        ({"MPI_LOCALRANKID": "2"}, 4, 1, 1),
        ({"MPI_LOCALRANKID": "two"}, 4, 0, 0),
    ],
)
def test_the_place_in_the_node_decides(places, gpus, chosen, taken, monkeypatch):
    cupy = fake_cupy.make(devices=gpus)
    runtime = cupy.cuda.runtime
    for name in LOCAL_RANK_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in places.items():
        monkeypatch.setenv(name, value)
    runtime.setDevice(chosen)
    take_own_gpu(cupy)
    assert runtime.getDevice() == taken
