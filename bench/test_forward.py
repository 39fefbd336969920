"""A2 by the network's engine."""

from bench.operations import Forward


def test_forward(timed, shape):
    timed(Forward(shape))
