"""The GPU benchmark's way to the package, on the fake GPU: right results are timed, wrong ones are not."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from harness.loaded import check_loaded

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # bench/ is a package of the checkout, not of the wheel

from bench.measure import WrongResultError
from bench.peers import check
from bench.peers.cases import Case
from bench.peers.device import Cpu
from bench.peers.fusedmlp_peer import Composed, Fused
from bench.peers.problem import draw


class FakeGpu(Cpu):
    """The clock of the CPU, the backend of a GPU."""

    kind = "cuda"
    backend = "cupy"


SOFTMAX = "categorical_cross_entropy"
CASES = [
    (Composed, Case("step", (5, 6, 1), 70)),
    *((Fused, Case("epoch", (5, 6, 1), 70, batch_size=n)) for n in (16, 70)),
    # The rows of the report on a GPU, at small sizes.
    *((Fused, Case("step", (5, 6, 1), 70, precision=precision)) for precision in ("strict", "high", "medium")),
    (Fused, Case("step", (5, 6, 1), 70, "relu")),
    (Fused, Case("step", (5, 6, 1), 70, "tanh")),
    (Fused, Case("step", (5, 6, 4), 70, loss=SOFTMAX)),
    (Fused, Case("step", (5, 7, 6, 3), 70, "relu", SOFTMAX)),
    (Fused, Case("step", (5, 7, 6, 1), 70, "relu")),
    (Fused, Case("step", (5, 6, 1), 70, dtype="float64")),
    (Fused, Case("epoch", (5, 6, 4), 70, "relu", SOFTMAX, 16)),
    (Fused, Case("epoch", (5, 6, 1), 70, "tanh", "squared_error", 16)),
    (Fused, Case("epoch", (5, 7, 6, 3), 70, "relu", SOFTMAX, 16)),
    (Fused, Case("epoch", (5, 6, 1), 70, batch_size=16, precision="medium")),
]


@pytest.mark.parametrize(("peer", "case"), CASES, ids=str)
def test_the_package_on_a_fake_gpu(emulated, peer, case):
    problem, right = draw(case, np), check.Right.of(case, np)
    own = peer(FakeGpu(), 1)
    bound = own.bind(problem._replace(X=emulated.asarray(problem.X), Y=emulated.asarray(problem.Y)))
    assert own.seconds(bound, 1) > 0
    assert own.engine().startswith("fused" if peer.fused else "composed")
    result = bound.result()
    assert check.compare(case, "cuda", "fused", result, right)[1] == ""
    for wrong in ({"J": result["J"] * 1.01}, {name: 1.5 * x for name, x in result.items() if name != "J"}):
        with pytest.raises(WrongResultError):
            check.compare(case, "cuda", "fused", {**result, **wrong}, right)


@pytest.mark.parametrize(("wrong", "says"), [((8, 256), "8 bytes of local"), ((0, 128), "blocks of 128 threads")])
def test_a_kernel_that_spills_or_crowds_is_found(wrong, says):
    kernels = {("f.cu", "g"): SimpleNamespace(local_size_bytes=0, max_threads_per_block=256)}
    check_loaded(SimpleNamespace(_kernels=kernels))
    kernels["f.cu", "h"] = SimpleNamespace(local_size_bytes=wrong[0], max_threads_per_block=wrong[1])
    with pytest.raises(AssertionError, match=f"h: {says}"):
        check_loaded(SimpleNamespace(_kernels=kernels))


@pytest.mark.parametrize("library", ["fit_many", "one after the other"])
def test_many_networks(cupy, monkeypatch, library):
    from bench.many.cases import CASES as MANY
    from bench.many.cases import Case as ManyCase
    from bench.many.libraries import measure

    rng = np.random.default_rng(0)
    data = rng.normal(size=(5, 70)).astype("f4"), (rng.random((1, 70)) < 0.5).astype("f4")
    monkeypatch.setitem(MANY, "three", ManyCase(3, (4,), lambda: data, 35, 2, 2))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")  # is put back
    found, expected = (measure(library, "three", backend) for backend in ("cupy", "numba-cpu"))
    np.testing.assert_allclose(found["losses"], expected["losses"], rtol=1e-5)
    assert "resident_float32" in cupy.launches
