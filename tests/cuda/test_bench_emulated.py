"""The GPU benchmark's way to the package, on the fake GPU: the kernels' numbers pass its check, wrong ones do not."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # bench/ is a package of the checkout, not of the wheel

from bench.gpu import device, exact, libraries, measure
from bench.gpu.cases import GpuCase, draw
from bench.measure import WrongResultError


class FakeGpu(device.Host):
    """The clock of the CPU, the backend of a GPU."""

    backend = "cupy"


@pytest.mark.parametrize("library", [libraries.Own, libraries.Composed])
@pytest.mark.parametrize(
    "case",
    [
        GpuCase("step", (5, 6, 1), 70),
        GpuCase("epoch", (5, 6, 1), 70, batch_size=16),
        GpuCase("epoch", (5, 6, 1), 70, batch_size=70),
    ],
    ids=str,
)
def test_the_package_on_a_fake_gpu(emulated, case, library):
    problem = draw(case, np)
    expected = exact.expected(problem, np)
    own = library(FakeGpu())
    bound = own.bind(problem._replace(X=emulated.asarray(problem.X), Y=emulated.asarray(problem.Y)), tf32=False)
    assert own.seconds(bound, 1) > 0
    assert own.engine().startswith("fused" if library.fused else "composed")
    result = bound.result()
    errors = measure.errors_of(case, result, expected)
    measure.check(case, "fused", errors)
    with pytest.raises(WrongResultError):
        measure.check(case, "fused", measure.errors_of(case, {**result, "J": result["J"] * 1.01}, expected))
