"""Training by several processes gives the numbers of one."""

from __future__ import annotations

from mpi_jobs import answer


def test_ranks_have_the_numbers_of_one():
    assert answer(3, "same_numbers.py") == {"1": {}, "2": {}, "3": {}}


def test_estimators_have_the_numbers_of_one_process():
    assert answer(2, "estimators.py") == {}
