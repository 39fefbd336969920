"""Bytes moved, counted: what the headers of the kernels claim, and whole steps of training."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
from harness import fake_cupy, traffic
from harness.emulator import compile_source

from fusedmlp import Gradients, Parameters
from fusedmlp.backends.cupy import CupyBackend, kernel_sources
from fusedmlp.backends.cupy.cublaslt import Epilogue
from fusedmlp.backends.cupy.middle_engine import MiddleEngine
from fusedmlp.backends.cupy.middle_traffic import bytes_of_step
from fusedmlp.backends.cupy.mini_batch import MiniBatch
from fusedmlp.backends.cupy.narrow_engine import NarrowEngine
from fusedmlp.backends.cupy.narrow_step import variant_of
from fusedmlp.backends.cupy.output_layer import OutputLayer
from fusedmlp.backends.cupy.sums import sum_rows
from fusedmlp.engines.options import EpochPosition
from fusedmlp.model.architecture import Architecture
from fusedmlp.model.optimizers import SGD, Adam, AdamW, OptimizerState


@pytest.fixture
def ledger(cupy, monkeypatch):
    """What is moved from now on; few clusters run at a time, so that the samples are more than their sums."""
    return traffic.count(monkeypatch, cupy)


def random(shape):
    return fake_cupy.copied(np.random.default_rng(0).uniform(0.1, 0.9, shape).astype(np.float32))


N, M = 64, 4096  # units and samples of the launches below: sums of blocks and biases are a few percent


class Claim(NamedTuple):
    """What the header of a file says of a kernel, the numbers of its arrays, and the call that launches it."""

    file: str
    kernel: str
    header: str
    numbers: int
    call: Callable | None = None

    def check(self, ledger):
        header = re.sub(r"\s*\n// *", " ", kernel_sources.source(self.file).split("typedef")[0])
        assert self.header in header
        moved = ledger.of(f"{self.kernel}_") / 4
        assert self.numbers <= moved <= 1.1 * self.numbers, (
            f"{moved / self.numbers:.3f} of what is claimed\n{ledger.table()}"
        )


class Step(NamedTuple):
    """A step of a network n1-n2-1 on m samples: X has n1 m numbers, the hidden activations, H, n2 m.

    `H` and `X` say how often each of them is read or written, `outputs` how many times m numbers the outputs, Y and J
    take at most.
    """

    path: str
    n1: int
    n2: int
    m: int
    H: int
    X: int
    outputs: int
    claim: Claim | None = None


NARROW = "n_in m + 2 n_out m (X and Y read"
# Middle: Z1 written, read, dZ1 written in its place, read for dW1. Composed: Z1 written; read and A1 written in its
# place; A1 read for Z2, for dW2 and for dZ1, which is written, and read for dW1 and for db1. Narrow: neither.
STEPS = [
    Step("middle", 256, 256, 4096, H=4, X=2, outputs=8),
    Step("middle", 16, 1030, 1024, H=5, X=2, outputs=28),  # Z1 read twice; the sums of blocks are 16 m
    Step("composed", 256, 256, 4096, H=9, X=2, outputs=80),
    # Narrow: X read, also where a cluster of blocks does it. The sums of blocks are 16 m.
    Step("narrow", 128, 64, M, H=0, X=1, outputs=25, claim=Claim("narrow_step.cu", "narrow_step", NARROW, 130 * M)),
    Step(
        "narrow", 128, 130, M, H=0, X=1, outputs=35, claim=Claim("narrow_cluster.cu", "narrow_cluster", NARROW, 130 * M)
    ),
]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: f"{step.path}-{step.n1}-{step.n2}")
def test_a_step_moves(ledger, step):
    """The multiples of H and X, and little besides.

    The rest: W1 is read, dW1 written, read and written once more to be scaled; the outputs, Y and J, which CuPy's own
    operations go through again and again where no kernel does; the sums of a kernel's blocks.
    """
    backend = CupyBackend()
    architecture = Architecture((step.n1, step.n2, 1))
    engine = engine_on(backend, architecture, step.path)
    parameters, gradients = (form(architecture, random(architecture.n_parameters)) for form in (Parameters, Gradients))
    X, Y = random((step.m, step.n1)).T, random((1, step.m))
    ledger.clear()
    engine.loss_and_gradients(parameters, X, Y, gradients)
    moved, planned = ledger.of() / 4, (step.H * step.n2 + step.X * step.n1) * step.m
    outputs = moved - planned - 4 * architecture.n_parameters
    assert 0 <= outputs <= step.outputs * step.m, f"{outputs / step.m:.1f} m\n{ledger.table()}"
    if step.claim:
        step.claim.check(ledger)


# Narrow layers above and wide ones; relu in float32 by epilogues, without any (None: as cuBLASLt has them).
DEEP = [
    ((96, 256, 128, 3), "relu", None),
    ((96, 256, 128, 3), "relu", False),
    ((96, 256, 128, 3), "tanh", None),
    ((96, 256, 128, 3), "identity", None),
    ((32, 128, 16, 256, 64, 1), "sigmoid", None),
    ((32, 128, 16, 256, 64, 1), "relu", None),
]


@pytest.mark.parametrize(("sizes", "activation", "epilogues"), DEEP)
def test_a_deep_step_moves_what_its_count_says(ledger, cupy, sizes, activation, epilogues):
    """What is left out of the count is small beside it: biases, sums of blocks, and the factor of the gradient."""
    backend, architecture = CupyBackend(), Architecture(sizes, activation)
    if epilogues is False:
        cupy.cublaslt.missing |= {Epilogue.RELU_AUX_BIAS, Epilogue.RELU_BIAS}
    engine = MiddleEngine(backend, architecture)
    parameters, gradients = (form(architecture, random(architecture.n_parameters)) for form in (Parameters, Gradients))
    X, Y = random((M, sizes[0])).T, random((sizes[-1], M))
    ledger.clear()
    engine.loss_and_gradients(parameters, X, Y, gradients)
    counted = bytes_of_step(architecture, M, epilogues)
    moved, expected = ledger.of(), sum(counted.values())
    assert expected <= moved <= 1.04 * expected, f"{moved / expected:.4f}\n{counted}\n{ledger.table()}"


def test_epilogues_save_five_passes_over_a_lower_layer():
    """Two forward, three backward (db was free before); the mask is written and read."""
    n, m = 512, 65_536
    architecture = Architecture((784, n, n, 4), "relu", "squared_error")
    with_epilogues, without = (sum(bytes_of_step(architecture, m, epilogues).values()) for epilogues in (True, False))
    masks = 2 * n * m // 8
    assert without - with_epilogues == 5 * 4 * n * m - masks


def engine_on(backend, architecture, path):
    """The engine of a path, whichever is the fastest."""
    if path == "middle":
        return MiddleEngine(backend, architecture)
    if path == "composed":
        return backend.engine(architecture, fused=False)
    launcher = backend.launcher
    return NarrowEngine(
        backend, architecture, variant_of(architecture, architecture.dtype, launcher.shared_bytes(), True)
    )


def activate(backend):
    backend.activate(random((N, M)), "sigmoid", random((N, 1)))


def fused_backward(n_out):
    def call(backend):
        backend.fused_backward(random((N, n_out)), random((n_out, M)), random((N, M)))

    return call


def engine_pass(name, n_out, n_in=256, n=N, m=M, path="middle"):
    """A pass of an engine through a network with one hidden layer."""

    def call(backend):
        architecture = Architecture((n_in, n, n_out))
        engine = engine_on(backend, architecture, path)
        parameters, gradients = (
            form(architecture, random(architecture.n_parameters)) for form in (Parameters, Gradients)
        )
        arguments = (random((m, n_in)).T, random((n_out, m)), gradients)
        getattr(engine, name)(parameters, *arguments[: {"forward": 1, "loss": 2, "loss_and_gradients": 3}[name]])

    return call


def lower_layer(n_above):
    """A backward pass through a layer of N units with `n_above` units above it, and those below 2 outputs."""

    def call(backend):
        architecture = Architecture((8, N, n_above, 2))
        parameters, gradients = (
            form(architecture, random(architecture.n_parameters)) for form in (Parameters, Gradients)
        )
        engine = MiddleEngine(backend, architecture)
        engine.loss_and_gradients(parameters, random((M, 8)).T, random((2, M)), gradients)

    return call


def add_rows(backend):
    sum_rows(backend.launcher, random((8, 1000)), random(1000))


def gather(backend):
    mini_batch = MiniBatch(backend.launcher, backend.xp, Architecture((N, 3, 1)))
    mini_batch.begin_epoch(0.1, 0, EpochPosition())
    samples, batch = [random((N, 2 * M)), random((1, 2 * M)), None], [random((M, N)), random((M, 1)), None]
    mini_batch.gather(None, samples, batch, M)


def squares(backend):
    architecture = Architecture((200, 200), loss="squared_error")
    mini_batch = MiniBatch(backend.launcher, backend.xp, architecture)
    mini_batch.begin_epoch(0.1, 0, EpochPosition())
    parameters = Parameters(architecture, random(architecture.n_parameters))
    output_layer = OutputLayer(backend.launcher, backend.xp, architecture)
    logits, Y = random((5, 200)), random((200, 5))
    mini_batch.finish(parameters, output_layer, logits, (Y, None), 0.1, 1.0, None, SGD(0.1))


def optimize(optimizer):
    def call(backend):
        architecture = Architecture((N, N, 1))
        parameters, gradients = (
            form(architecture, random(architecture.n_parameters)) for form in (Parameters, Gradients)
        )
        backend.take_step(OptimizerState(optimizer, backend.xp, parameters), parameters, gradients, 0.5, 0.1)

    return call


THETA = Architecture((N, N, 1)).n_parameters
NARROW_FORWARD = "narrow_forward n_in m + tiles n_out m (X read, parts written)"
LOWER = "3 n m with the product given (A and dA read, dZ written), else 2 n m + n_up m"
HIDDEN_LAYER = "2 n m (Z read, dZ written), n_out m of Y"
OPTIMIZER = "sgd 3 n (θ twice, gradient), momentum and nesterov 5 n, adam and adamw 7 n"
BACKWARD = "2 n_in m elements (A read, out written), n_out m of dZ"
CLAIMS = [
    Claim("activations.cu", "activate", "2 n m elements (Z read, A written)", 2 * N * M, activate),
    Claim("fused_backward.cu", "fused_backward_1", BACKWARD, (2 * N + 1) * M, fused_backward(1)),
    Claim("fused_backward.cu", "fused_backward_4", BACKWARD, (2 * N + 4) * M, fused_backward(4)),
    Claim("fused_backward.cu", "fused_backward_16", BACKWARD, (2 * N + 16) * M, fused_backward(16)),
    Claim("fused_backward.cu", "times_derivative", "3 n_in m elements (A and out read", 3 * N * M, fused_backward(17)),
    Claim("hidden_layer.cu", "hidden_layer_1", HIDDEN_LAYER, (2 * N + 2) * M, engine_pass("loss_and_gradients", 1)),
    Claim("hidden_layer.cu", "hidden_layer_4", HIDDEN_LAYER, (2 * N + 8) * M, engine_pass("loss_and_gradients", 4)),
    Claim(
        "hidden_layer.cu", "hidden_layer_16", HIDDEN_LAYER, 160 * 1024, engine_pass("loss_and_gradients", 16, m=1024)
    ),
    Claim("hidden_layer.cu", "hidden_layer_4", "forward alone (n + n_out) m", (N + 4) * M, engine_pass("loss", 4)),
    Claim("lower_layer.cu", "lower_layer_0", LOWER, 3 * N * M, lower_layer(40)),
    Claim("lower_layer.cu", "lower_layer_1", LOWER, (2 * N + 1) * M, lower_layer(1)),
    Claim("lower_layer.cu", "lower_layer_4", LOWER, (2 * N + 4) * M, lower_layer(4)),
    Claim("lower_layer.cu", "lower_layer_16", LOWER, (2 * N + 16) * M, lower_layer(16)),
    Claim(
        "narrow_step.cu",
        "narrow_forward",
        NARROW_FORWARD,
        129 * M,
        engine_pass("loss", 1, n_in=128, n=32, path="narrow"),
    ),
    Claim("mini_batch.cu", "gather", "gather 2 (n_in + n_out) size", 2 * (N + 1) * M, gather),
    Claim("mini_batch.cu", "squares", "squares n", 200 * 200, squares),
    Claim("output_layer.cu", "losses", "losses 2 n_out m", 2 * 4 * M, engine_pass("loss", 4)),
    Claim("output_layer.cu", "outputs", "outputs 3 n_out m", 3 * 4 * M, engine_pass("forward", 4)),
    Claim("sum_rows.cu", "sum_rows", "rows n (x read), n (out written)", 9 * 1000, add_rows),
    Claim("optimizer.cu", "sgd", OPTIMIZER, 3 * THETA, optimize(SGD(0.1))),
    Claim("optimizer.cu", "momentum", OPTIMIZER, 5 * THETA, optimize(SGD(0.1, momentum=0.9))),
    Claim("optimizer.cu", "nesterov", OPTIMIZER, 5 * THETA, optimize(SGD(0.1, momentum=0.9, nesterov=True))),
    Claim("optimizer.cu", "adam", OPTIMIZER, 7 * THETA, optimize(Adam())),
    Claim("optimizer.cu", "adamw", OPTIMIZER, 7 * THETA, optimize(AdamW())),
]


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: f"{claim.kernel}-{claim.numbers}")
def test_a_kernel_moves_what_its_header_says(ledger, claim):
    claim.call(CupyBackend())
    claim.check(ledger)


def test_every_file_has_its_claims():
    claims = [*CLAIMS, *(step.claim for step in STEPS if step.claim)]
    resident = {"resident.cu", "resident_cluster.cu"}  # their arrays are in records: test_resident.py counts them
    assert {claim.file for claim in claims} == set(kernel_sources.names()) - resident


COUNTED = """
struct alignas(16) Four { float x[4]; };
extern "C" __global__ void packs(const Four* a, Four* out, int n, int step) {
    for (int i = threadIdx.x; i < n / 4; i += blockDim.x * step) out[i] = a[i];
}
extern "C" __global__ void through_shared(const float* a, float* out, int n, int) {
    float* shared = reinterpret_cast<float*>(shared_memory);
    shared[threadIdx.x] = a[threadIdx.x];
    __syncthreads();
    if (threadIdx.x == 0)
        for (int i = 0; i < n; ++i) out[0] += shared[i % blockDim.x];
}
extern "C" __global__ void blocks_meet(const float* a, float* out, int, int) {
    if (threadIdx.x == 0) out[0] += a[blockIdx.x];
}
extern "C" __global__ void twice(const float* a, float* out, int n, int step) {
    for (int i = threadIdx.x; i + step < n; i += blockDim.x) out[i] = a[i] + a[i + step];
}
"""


@pytest.mark.parametrize(
    ("kernel", "step", "loaded", "stored"),
    [("packs", 1, 256, 256), ("through_shared", 1, 64 + 1, 1), ("twice", 128, 256, 128)],
)
def test_the_counter_counts(compiler, kernel, step, loaded, stored):
    """Every byte once; shared memory and what lies on a stack are no traffic."""
    function = compile_source(COUNTED).get_function(kernel)
    arguments = (random(256), random(256), np.int32(256), np.int32(step))
    assert traffic.run_and_count(function, (1,), (64,), arguments, 256) == (kernel, 4 * loaded, 4 * stored)


def test_blocks_that_use_the_same_number_are_found(compiler, thread_order):
    function = compile_source(COUNTED).get_function("blocks_meet")
    with pytest.raises(AssertionError, match="a block uses what another one has written"):
        traffic.run_and_count(function, (2,), (64,), (random(256), random(256), np.int32(256), np.int32(1)))
