"""Samples that are held back for validation: how many, which, and the two parts."""

from __future__ import annotations

import numpy as np

from fusedmlp.checks import check_number
from fusedmlp.engines.samples import Samples


def held_back(m: int, fraction: float, what: str = "samples") -> int:
    """How many of m samples, or blocks of them, are held back for validation; at least one, and not all."""
    check_number("validation_fraction", fraction, 0, 1)
    n_validation = max(1, round(m * fraction))
    if n_validation >= m:
        raise ValueError(f"validation_fraction: {fraction} of {m} {what} leaves none to train on; expected more {what}")
    return n_validation


def validation_part(
    m: int, fraction: float, generator: np.random.Generator | np.random.RandomState
) -> tuple[np.ndarray, np.ndarray]:
    """(samples to train on, samples to validate on) of m: a random split, with at least one sample to validate on."""
    n_validation = held_back(m, fraction)
    order = generator.permutation(m)
    return order[n_validation:], order[:n_validation]


def split(samples: Samples, parts: tuple[np.ndarray, np.ndarray], largest_copy: int | None) -> tuple[Samples, Samples]:
    """(training samples, validation samples) of a split; `largest_copy` as in `Samples.take`."""
    train, validation = (samples.take(part, largest_copy) for part in parts)
    for name, part in (("training", train), ("validation", validation)):
        if part.sample_weight is not None and part.weight_sum == 0:
            raise ValueError(f"sample_weight: all weights of the {part.m} samples in the {name} part are 0")
    return train, validation
