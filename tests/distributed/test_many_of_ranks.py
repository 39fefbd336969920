"""Many networks, searches and ensembles whose trainings several processes share."""

from __future__ import annotations

import pytest

from fusedmlp.distributed.shares import owners_of
from mpi_jobs import answer

MESSAGES = {
    "epochs": "epochs: expected the same on all ranks; got 1 on rank 0; 2 on rank 1",
    "X": "X: expected the same numbers on all ranks",
    "samples": "samples: expected the same numbers on all ranks",
    "networks": "networks: expected the same on all ranks; got 5 on rank 0; 4 on rank 1",
    "state": "state: expected the same on all ranks; got [None] on rank 0; [(0, 0)] on rank 1",
    "batch_size": "networks[0]: batch_size: expected a whole number >= 1; got 0",
    "alpha": "estimator__alpha: expected the same on all ranks; got 0.0 on rank 0; 0.1 on rank 1",
    "rows": "X: expected the same X, y and sample_weight on all ranks",
    "interval": "checkpoint_every: expected epochs or a time; got '2 batches'",
    "folder": "[Errno 2] No such file or directory: 'no folder/run'",
    "pickled": "comm: expected what other processes can have; got what cannot be pickled",
}


@pytest.fixture(scope="module")
def outcomes():
    return answer(2, "many.py")


def test_all_ranks_have_the_bits_of_one_process(outcomes):
    assert outcomes[0] == [{}, {}]


def test_each_training_is_done_once(outcomes):
    assert outcomes[1] == {"epochs of networks with callbacks": 10, "fits of a search": 12}


@pytest.mark.parametrize("mistake", MESSAGES)
def test_a_mistake_with_many_is_an_error_on_every_rank(outcomes, mistake):
    messages = outcomes[2][mistake]
    assert all(message is not None and message.startswith(MESSAGES[mistake]) for message in messages)


def test_every_mistake_with_many_is_expected(outcomes):
    assert outcomes[2].keys() == MESSAGES.keys()


@pytest.mark.parametrize(
    ("work", "ranks", "loads"),
    [
        ([1, 1, 1, 1], 2, [2, 2]),
        ([1, 2, 3, 4, 10], 2, [10, 10]),
        ([5, 1, 1, 1, 1, 1], 3, [2, 3, 5]),
        ([1], 3, [0, 0, 1]),
        ([0, 0, 0, 0], 2, [0, 0]),
        ([], 2, [0, 0]),
    ],
)
def test_ranks_have_about_as_much_work(work, ranks, loads):
    owners = owners_of(work, ranks)
    found = [sum(w for w, owner in zip(work, owners, strict=True) if owner == rank) for rank in range(ranks)]
    assert sorted(found) == loads
    counts = [owners.count(rank) for rank in range(ranks)]
    if len(set(work)) == 1 and len(work) >= ranks:
        assert max(counts) - min(counts) <= 1
