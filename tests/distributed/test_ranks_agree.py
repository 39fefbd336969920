"""Training by several processes gives the numbers of one."""

from __future__ import annotations

import pytest

from mpi_jobs import answer


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_have_the_numbers_of_one(ranks):
    assert answer(ranks, "same_numbers.py") == {}


def test_estimators_have_the_numbers_of_one_process():
    assert answer(2, "estimators.py") == {}
