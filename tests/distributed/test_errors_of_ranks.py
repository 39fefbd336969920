"""What goes wrong in one process ends all of them, or is an error in all of them."""

from __future__ import annotations

import pytest

from mpi_jobs import PROGRAMS, answer, run_job

SAME = "expected the same on all ranks; got "
MESSAGES = {
    "layer_sizes": f"layer_sizes: {SAME}[4, 3, 1] on rank 0; [4, 4, 1] on rank 1",
    "hidden_activation": f"hidden_activation: {SAME}'tanh' on rank 0; 'relu' on rank 1",
    "loss": f"loss: {SAME}'binary_cross_entropy' on rank 0; 'squared_error' on rank 1",
    "dtype": f"dtype: {SAME}'float32' on rank 0; 'float64' on rank 1",
    "epochs": f"epochs: {SAME}5 on rank 0; 6 on rank 1",
    "batch_size": f"batch_size: {SAME}8 on rank 0; 9 on rank 1",
    "optimizer": f"optimizer: {SAME}'adam' on rank 0; 'sgd' on rank 1",
    "optimizer's numbers": f"optimizer: {SAME}SGD(",
    "random_state": f"random_state: {SAME}0 on rank 0; 1 on rank 1",
    "schedule": f"schedule: {SAME}'constant' on rank 0; 'step' on rank 1",
    "dropout": f"dropout: {SAME}0.0 on rank 0; 0.5 on rank 1",
    "shards": f"shards: {SAME}False on rank 0; True on rank 1",
    "state": f"state: {SAME}None on rank 0; 'a TrainingState after 0 epochs and 0 steps' on rank 1",
    "sample_weight": f"sample_weight: {SAME}'None' on rank 0; 'weights' on rank 1",
    "validation_data": f"validation_data: {SAME}None on rank 0; 'samples' on rank 1",
    "shape of X": f"shape of X: {SAME}(4, 20) on rank 0; (4, 19) on rank 1",
    "X": "X: expected the same samples on all ranks, of which each takes its slice; the ranks gave others",
    "inputs of X": f"inputs of X: {SAME}4 on rank 0; 3 on rank 1",
    "a number that is not finite": ("rank 1: X: expected finite numbers", "X: expected finite numbers"),
    "a wrong argument on all": "batch_size: expected ",
    "a wrong argument on one": f"patience: {SAME}-1.0 on rank 0; -1 on rank 1",
    "gradient_phase": "gradient_phase: expected None beside comm",
    "no samples": "X: expected at least one sample on any rank",
    "weights that are all 0": "sample_weight: expected at least one weight > 0 on any rank",
}


@pytest.fixture(scope="module")
def mistakes():
    return answer(2, "mistakes.py")


@pytest.mark.parametrize("mistake", MESSAGES)
def test_a_mistake_is_an_error_on_every_rank(mistakes, mistake):
    expected = MESSAGES[mistake]
    starts = (expected, expected) if isinstance(expected, str) else expected
    for message, start in zip(mistakes[mistake], starts, strict=True):
        assert message is not None
        assert message.startswith(start)


def test_every_mistake_is_expected_and_training_goes_on_after_them(mistakes):
    assert mistakes.pop("nothing wrong") == [None, None]
    assert mistakes.keys() == MESSAGES.keys()


@pytest.mark.parametrize(
    ("how", "status", "backend"),
    [
        ("raise", 1, "numba-cpu"),
        ("raise", 1, "numpy"),
        ("raise and catch", 1, "numpy"),
        ("raise between", 1, "numpy"),
        ("kill", 9, "numba-cpu"),
        ("interrupt", 130, "numba-cpu"),
        ("exit between", 3, "numpy"),
        ("exit", 3, "numba-cpu"),
        ("leave between", 3, "numpy"),
        ("quit between", 3, "numpy"),
        ("nothing", 0, "numba-cpu"),
        ("thread", 1, "numpy"),
    ],
)
def test_a_rank_that_fails_ends_the_job(how, status, backend):
    """With numba-cpu where rank 0 has to leave compiled code, or the end is an ordinary one; numpy starts sooner."""
    result, seconds = run_job(2, PROGRAMS / "failing.py", how, backend, timeout=60)
    assert result.returncode == status, result.stderr
    assert seconds < 10 + 35  # ten from the failure on; before it, Python and the kernels are loaded, maybe compiled
