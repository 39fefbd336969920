"""Checksums over samples do not depend on the processes that the samples lie in."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from scipy import sparse

from fusedmlp import Architecture, get_backend
from fusedmlp.engines.digests import Whole, samples_described
from fusedmlp.engines.samples import as_samples

BACKEND = get_backend("numpy")
M = 3000
GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(3, M)) * (GENERATOR.random((3, M)) > 0.5)
Y = GENERATOR.normal(size=(1, M))
WEIGHT = GENERATOR.random(M)
ORDER = GENERATOR.permutation(M)[:100]


def samples(first=0, last=M, x=X, y=Y):
    architecture = Architecture([3, 1], loss="squared_error", dtype="float32")
    return as_samples(x[:, first:last], y[:, first:last], WEIGHT[first:last], architecture, BACKEND)


def described(parts, **given):
    """What the process with the first part finds, of the parts that all have."""
    pieces = [samples(first, last, **given) for first, last in parts]
    excerpts = [[] for _ in pieces]
    for (first, _), piece, mine in zip(parts, pieces, excerpts, strict=True):

        def gathered(excerpt, mine=mine):
            mine.append(excerpt)
            return [np.zeros((1, 1))]

        samples_described("", piece, Whole(first, M, None, gathered), BACKEND, "float32")
    rounds = iter(zip(*excerpts, strict=True))
    return samples_described("", pieces[0], Whole(0, M, ORDER, lambda _: list(next(rounds))), BACKEND, "float32")


@pytest.mark.parametrize("kind", [np.asarray, sparse.csc_array])
@pytest.mark.parametrize("edges", [[0, M], [0, 1000, M], [0, 1, 2, 1700, M]])
def test_parts_have_the_checksums_of_the_whole(kind, edges):
    parts = list(pairwise(edges))
    whole = Whole(0, M, ORDER, lambda excerpt: [excerpt])
    expected = samples_described("", samples(x=kind(X)), whole, BACKEND, "float32")
    assert expected["X"]["shape"] == [3, M]
    assert expected["samples"]["shape"] == [100]
    assert described(parts, x=kind(X)) == expected


def test_other_numbers_have_other_checksums():
    before = described([(0, M)])
    for change, name in (({"x": X + 1}, "X"), ({"y": Y + 1}, "Y")):
        after = described([(0, M)], **change)
        assert [key for key in before if before[key] != after[key]] == [name]
