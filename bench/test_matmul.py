"""Z1 = W1ᵀ X."""

from bench.operations import Matmul


def test_matmul(timed, shape):
    timed(Matmul(shape))
