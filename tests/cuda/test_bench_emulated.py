"""The GPU benchmark's way to the package, on the fake GPU: right results are timed, wrong ones are not."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # bench/ is a package of the checkout, not of the wheel

from bench.measure import WrongResultError
from bench.peers import measure
from bench.peers.cases import Case
from bench.peers.device import Cpu
from bench.peers.fusedmlp_peer import Composed, Fused
from bench.peers.problem import draw


class FakeGpu(Cpu):
    """The clock of the CPU, the backend of a GPU."""

    kind = "cuda"
    backend = "cupy"


@pytest.mark.parametrize(
    ("peer", "case"),
    [(Composed, Case("step", (5, 6, 1), 70)), *((Fused, Case("epoch", (5, 6, 1), 70, batch_size=n)) for n in (16, 70))],
    ids=str,
)
def test_the_package_on_a_fake_gpu(emulated, peer, case):
    problem, right = draw(case, np), measure.expected(case, np)
    own = peer(FakeGpu(), 1)
    bound = own.bind(problem._replace(X=emulated.asarray(problem.X), Y=emulated.asarray(problem.Y)))
    assert own.seconds(bound, 1) > 0
    assert own.engine().startswith("fused" if peer.fused else "composed")
    result = bound.result()
    measure.check(case, "cuda", "fused", measure.errors_of(result, right))
    with pytest.raises(WrongResultError):
        measure.check(case, "cuda", "fused", measure.errors_of({**result, "J": result["J"] * 1.01}, right))
