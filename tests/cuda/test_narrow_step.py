"""The whole step of narrow networks, run on the CPU in every variant, against the oracle in float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from harness import emulator

import oracle
from compare import TOLERANCE, assert_close
from fusedmlp.backends.cupy.cuda_tables import CUDA_ACTIVATIONS, CUDA_LOSSES
from fusedmlp.backends.cupy.narrow_engine import NarrowEngine
from fusedmlp.backends.cupy.narrow_step import KINDS, Variant, variant_of
from fusedmlp.model.architecture import Architecture
from fusedmlp.model.parameters import Gradients, Parameters

H100_SHARED = 227 * 1024
T4_SHARED = 64 * 1024
VARIANTS = [
    variant
    for variant in itertools.starmap(Variant, itertools.product((1, 4), (2, 4, 8, 16), (4, 8), KINDS, (False, True)))
    if variant.exists
]
TF32 = 2.0**-11  # the largest error of a rounding to 10 bits
HIGH = 2e-6  # the largest error of a product in 3xTF32, of numbers N(0, 1)


def name(variant):
    return "-".join(map(str, variant))


class Case:
    """A network with samples, on the fake GPU, and what the oracle makes of them."""

    def __init__(self, backend, variant, n_in, n, m, n_out, *, weighted=False, order="C", **described):
        rng = np.random.default_rng([n_in, n, m])
        self.architecture = Architecture((n_in, n, n_out), dtype=variant.dtype, **described)
        self.engine = NarrowEngine(backend, self.architecture, variant)
        flat = (rng.normal(size=self.architecture.n_parameters) / np.sqrt(n_in)).astype(variant.dtype)
        self.parameters = Parameters(self.architecture, flat)
        X = rng.normal(size=(n_in, m)).astype(variant.dtype)
        Y = self.targets(rng, m).astype(variant.dtype)
        w = rng.uniform(0, 2, (1, m)).astype(variant.dtype) if weighted else None
        self.samples = X, Y, w
        self.on_gpu = [None if x is None else backend.asarray(np.array(x, order=order)) for x in (X, Y, w)]
        self.gpu_parameters = Parameters(self.architecture, backend.asarray(flat))
        self.gradients = Gradients(self.architecture, backend.xp.empty_like(self.gpu_parameters.flat))

    def targets(self, rng, m):
        loss, n_out = self.architecture.loss, self.architecture.n_outputs
        if loss == "categorical_cross_entropy":
            return np.eye(n_out)[rng.integers(0, n_out, m)].T
        if loss == "squared_error":
            return rng.normal(size=(n_out, m))
        return rng.integers(0, 5 if loss == "poisson" else 2, (n_out, m))

    def loss_and_gradients(self):
        X, Y, w = self.on_gpu
        J = self.engine.loss_and_gradients(self.gpu_parameters, X, Y, self.gradients, w)
        return J, self.gradients.flat.get()

    def expected(self):
        """(J, the flat gradient, A_L)."""
        X, Y, w = self.samples
        network = self.parameters.weights, self.parameters.biases
        described = self.architecture.hidden_activation, self.architecture.loss
        J, dWs, dbs = oracle.loss_and_gradients(*network, X.T, Y.T, *described, None if w is None else w[0])
        layers = zip(dWs, dbs, strict=True) if dbs else zip(dWs, strict=True)
        flat = np.concatenate([part.ravel() for layer in layers for part in layer])
        return J, flat, oracle.forward(*network, X.T, *described)[1].T

    def check(self, tolerance):
        J, flat, A_L = self.expected()
        got_J, got_flat = self.loss_and_gradients()
        assert got_J == pytest.approx(J, rel=tolerance, abs=tolerance)
        assert_close(got_flat, flat, "gradient", tolerance=tolerance)
        assert_close(self.engine.forward(self.gpu_parameters, self.on_gpu[0]).get(), A_L, "A_L", tolerance=tolerance)


def tolerance(variant, n_in):
    return 4 * np.sqrt(n_in) * TF32 if variant.arithmetic == "tf32" else TOLERANCE[variant.dtype]


@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(variant, marks=[] if number % 3 == 0 else [pytest.mark.every_kernel], id=name(variant))
        for number, variant in enumerate(VARIANTS)
    ],
)
def test_every_variant(emulated, variant):
    """Full and partial tiles of samples, of units and of inputs; one tile of units and several; both memory orders.

    The orders of the threads take turns, other ones for the next variant. There are two multiprocessors: the samples
    are cut into few ranges, and a block goes through several tiles of them.
    """
    U, inputs, N = variant.units, 8 * variant.R, variant.N
    described = {"hidden_activation": "tanh", "loss": "squared_error", "bias": False}
    cases = (
        Case(emulated, variant, inputs, U, 40, N),
        Case(emulated, variant, inputs - 3, U - 5, 32, 1, order="F", weighted=True, **described),
        Case(emulated, variant, inputs // 2 + 1, 2 * U + 1, 33, max(1, N - 1), weighted=True),
        *([Case(emulated, variant, 3, 1024, 33, N)] if variant.clustered else []),
        Case(emulated, variant, 1, 1, 1, 1, order="F"),
    )
    for number, case in enumerate(cases, VARIANTS.index(variant)):
        with emulator.thread_order(emulator.ORDERS[number % 3]):
            case.check(tolerance(variant, inputs))


@pytest.mark.parametrize("arithmetic", KINDS)
@pytest.mark.parametrize("n_out", [1, 2, 4])
def test_activations_and_losses(emulated, n_out, arithmetic):
    """Every loss and every activation by each kernel; which one meets which makes no difference to the code."""
    losses = [loss for loss in CUDA_LOSSES if loss != "categorical_cross_entropy" or n_out > 1]
    for number, (loss, activation) in enumerate(zip(losses, itertools.cycle(CUDA_ACTIVATIONS), strict=False)):
        described = {"hidden_activation": activation, "loss": loss, "bias": number % 3 > 0, "weighted": number % 2 > 0}
        for n, clustered in ((20, False), (150, arithmetic != "float32")):
            variant = Variant(1 if n_out == 1 else 4, 2, 8 if clustered and arithmetic != "float64" else 4, arithmetic)
            variant = variant._replace(clustered=clustered)
            # Of a rounded number near 0 relu has another derivative.
            factor = 5 if (arithmetic, activation) == ("tf32", "relu") else 1
            Case(emulated, variant, 9, n, 45, n_out, **described).check(factor * tolerance(variant, 9))


@pytest.mark.parametrize(
    "variant",
    [
        Variant(4, 4, 8, "float32"),
        Variant(1, 2, 4, "tf32"),
        Variant(1, 2, 4, "tf32x3"),
        Variant(4, 2, 8, "float32", clustered=True),
    ],
    ids=name,
)
@pytest.mark.parametrize("n", [60, 300])
def test_bits_do_not_depend_on_the_order_of_threads(emulated, variant, n):
    results = []
    for order in emulator.ORDERS:
        with emulator.thread_order(order):
            results.append(Case(emulated, variant, 11, n, 200, variant.N).loss_and_gradients())
    for J, flat in results[1:]:
        assert results[0][0] == J
        assert np.array_equal(flat, results[0][1])


@pytest.mark.parametrize(
    ("variant", "n"),
    [(Variant(1, 2, 4, "float32"), 100), (Variant(1, 2, 8, "float32", clustered=True), 600)],
    ids=("block", "cluster"),
)
def test_many_rounds_of_few_blocks(emulated, thread_order, variant, n):
    """Two multiprocessors: a block goes through dozens of tiles, and its warps run ahead of each other."""
    Case(emulated, variant, 16, n, 1000, 1).check(TOLERANCE["float32"])


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v.arithmetic == "tf32x3"], ids=name)
def test_high_is_close_to_strict_and_tf32_is_not(emulated, variant):
    """Gradients of many tiles: their sums are not cut off as those of tensor cores are."""
    n = variant.units + (40 if variant.clustered else -30)
    errors = {}
    for arithmetic in ("float32", "tf32x3", "tf32"):
        case = Case(emulated, variant._replace(arithmetic=arithmetic), 8 * variant.R, n, 250, variant.N)
        errors[arithmetic] = error_of(case.loss_and_gradients()[1], case.expected()[1])
    assert errors["float32"] < 5e-7
    assert errors["tf32x3"] < min(HIGH, 3 * errors["float32"])
    assert errors["tf32"] > 1e-5


def error_of(got, expected):
    """Relative, in the Frobenius norm."""
    return np.linalg.norm(got - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("sizes", "dtype", "arithmetic", "shared", "clusters", "expected"),
    [
        ((16, 256, 1), "float32", "float32", H100_SHARED, True, (1, 2, 8, "float32")),
        ((16, 257, 1), "float32", "float32", H100_SHARED, True, (1, 2, 8, "float32", True)),
        ((16, 257, 1), "float32", "float32", H100_SHARED, False, (1, 2, 8, "float32")),
        ((64, 1024, 1), "float32", "float32", H100_SHARED, True, (1, 8, 8, "float32", True)),
        ((64, 1024, 1), "float32", "tf32", H100_SHARED, True, (1, 8, 8, "tf32", True)),
        ((64, 1024, 1), "float32", "float32", T4_SHARED, False, (1, 8, 4, "float32")),
        ((128, 100, 4), "float32", "float32", H100_SHARED, True, (4, 16, 4, "float32")),
        ((128, 1024, 4), "float32", "tf32", H100_SHARED, True, (4, 16, 4, "tf32", True)),
        ((128, 1024, 4), "float32", "tf32", H100_SHARED, False, (4, 16, 4, "tf32")),
        ((64, 1024, 1), "float32", "tf32x3", H100_SHARED, True, (1, 8, 8, "tf32x3", True)),
        ((64, 1024, 4), "float32", "tf32x3", H100_SHARED, True, (4, 8, 8, "tf32x3")),  # not in a cluster: registers
        ((128, 100, 4), "float32", "tf32x3", H100_SHARED, False, (4, 16, 4, "tf32x3")),
        ((128, 1024, 4), "float32", "float32", H100_SHARED, False, (4, 16, 4, "float32")),
        ((30, 640, 1), "float64", "float64", H100_SHARED, True, (1, 4, 4, "float64", True)),
        ((65, 64, 1), "float64", "float64", H100_SHARED, True, None),
        ((129, 64, 1), "float32", "tf32", H100_SHARED, True, None),
        ((16, 1025, 1), "float32", "tf32", H100_SHARED, True, None),
        ((16, 64, 5), "float32", "float32", H100_SHARED, True, None),
        ((16, 64, 64, 1), "float32", "float32", H100_SHARED, True, None),
        ((16, 64, 1), "float32", "float32", 16 * 1024, True, None),
    ],
)
def test_choice_of_a_variant(sizes, dtype, arithmetic, shared, clusters, expected):
    expected = None if expected is None else Variant(*expected)
    assert variant_of(Architecture(sizes, dtype=dtype), arithmetic, shared, clusters) == expected
