"""A1 = 1 / (1 + exp(-Z1))."""

from bench.operations import Sigmoid


def test_sigmoid(timed, shape):
    timed(Sigmoid(shape))
