"""dZ1 = W2 dZ2 ⊙ A1 (1 - A1), for one output and for several."""

from dataclasses import replace

from bench.grid import GENERAL_N3
from bench.operations import FusedBackward


def test_rank_one(timed, shape):
    timed(FusedBackward(replace(shape, n3=1)))


def test_general(timed, shape):
    timed(FusedBackward(replace(shape, n3=GENERAL_N3)))
