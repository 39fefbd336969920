"""Gradients on GPUs: NCCL where each process has a GPU of its own, the host's memory where they share one."""

from __future__ import annotations

from mpi_jobs import answer


def test_nccl_where_it_can_be():
    results = answer(2, "gpus.py")
    assert results == {
        f"{case}, {dtype}": case == "own" for case in ("own", "shared", "no NCCL") for dtype in ("float32", "float64")
    }
