"""The model of bench/scaling."""

from __future__ import annotations

import math

import pytest

from bench.scaling.model import StepModel, fitted

MODEL = StepModel(
    fixed=1e-4,
    sample=6e-6,
    shared_fixed=1.2e-4,
    shared_sample=6e-6,
    draw=1e-7,
    latency=1e-5,
    byte=1e-9,
    gradient_bytes=400_000,
)


def test_one_process_sends_nothing():
    assert MODEL.step(1, 100) == pytest.approx(1e-4 + 100 * 6.1e-6)
    assert MODEL.efficiency(1, 100) == 1


def test_what_sharing_takes_counts_for_several_processes():
    shared = MODEL.shared_fixed + MODEL.largest_part(2, 100) * MODEL.shared_sample + 200 * MODEL.draw
    assert MODEL.step(2, 100) == pytest.approx(shared + MODEL.allreduce(2))


def test_two_processes_have_the_time_that_was_measured_for_their_message():
    assert MODEL.allreduce(2) == pytest.approx(1e-5 + 400_000 * 1e-9)
    assert MODEL.allreduce(1024) < 2 * 10 * 1e-5 + 2 * 400_000 * 1e-9


@pytest.mark.parametrize("ranks", [2, 8, 30])
def test_the_smallest_batch_has_the_efficiency(ranks):
    batch = MODEL.batch_for(ranks, 0.5)
    assert MODEL.efficiency(ranks, batch) == pytest.approx(0.5, abs=1e-3)


def test_the_order_of_all_samples_limits_the_efficiency():
    assert math.isinf(MODEL.batch_for(100, 0.5))


def test_a_fit_finds_the_numbers_that_times_were_made_of():
    batches = [100, 1000, 5000]
    fixed, sample = fitted(batches, [MODEL.step(1, batch) for batch in batches], MODEL.draw)
    assert (fixed, sample) == (pytest.approx(MODEL.fixed), pytest.approx(MODEL.sample))
