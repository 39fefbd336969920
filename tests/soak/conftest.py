"""How often each thing is tried."""

from __future__ import annotations

from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Counts:
    """Of each thing; `step` from one truncation to the next, in bytes."""

    kills: int = 8
    flips: int = 400
    step: int = 23
    fits: int = 3
    forks: int = 2
    tables: int = 60
    deaths: int = 0


MANY = Counts(kills=200, flips=10_000, step=1, fits=100, forks=50, tables=5_000, deaths=50)


@pytest.fixture(scope="session")
def soak(request):
    """The counts: those of ``--soak``, each of which has an option, else few."""
    option = request.config.getoption
    counts = MANY if option("--soak") else Counts()
    given = {name: option(f"--soak-{name}") for name in Counts.__dataclass_fields__}
    return Counts(**(vars(counts) | {name: value for name, value in given.items() if value is not None}))
