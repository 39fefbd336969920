"""The fused middle of a step, run on the CPU, against the formulas in float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from harness import emulator, fake_cupy

from fusedmlp.backends.cupy import kernel_sources
from fusedmlp.backends.cupy.cuda_tables import CUDA_ACTIVATIONS, CUDA_LOSSES
from fusedmlp.backends.cupy.hidden_layer import HiddenLayer, samples_of, shape_of, tiles_of
from fusedmlp.backends.cupy.launch import C_TYPES, THREADS, Launcher, pointer, strided
from fusedmlp.model.activations import OUTPUT_ACTIVATIONS, largest_exponent
from fusedmlp.model.architecture import Architecture
from fusedmlp.model.losses import LOSSES
from oracle import ACTIVATIONS

DTYPES = ("float32", "float64")


def width(n_out):
    return next(n for n in (1, 4, 16) if n_out <= n)


def targets(loss, n_out, m, rng):
    if loss == "categorical_cross_entropy":
        return np.eye(n_out)[rng.integers(0, n_out, m)].T
    if loss in ("binary_cross_entropy", "sum_squared_error"):
        return rng.integers(0, 2, (n_out, m)).astype(float)
    return rng.integers(0, 5, (n_out, m)).astype(float) if loss == "poisson" else rng.normal(size=(n_out, m))


class Case:
    """A problem, its answer in float64, and its launches."""

    def __init__(
        self, n, m, n_out, dtype, activation="sigmoid", loss="binary_cross_entropy", bias=True, weighted=False
    ):
        rng = np.random.default_rng(n * 1000 + m)
        self.n, self.m, self.n_out, self.dtype, self.activation, self.loss = n, m, n_out, dtype, activation, loss
        self.Z, self.W2 = rng.normal(size=(m, n)), rng.normal(size=(n, n_out)) / np.sqrt(n)
        self.b, self.b2 = (rng.normal(size=n), rng.normal(size=n_out)) if bias else (None, None)
        self.Y = targets(loss, n_out, m, rng)
        self.weights = rng.uniform(0, 2, m) if weighted else None
        for name in ("Z", "W2", "b", "b2", "weights"):
            if getattr(self, name) is not None:
                setattr(self, name, getattr(self, name).astype(dtype).astype(float))

    def expected(self):
        """{what is written: its value}."""
        w = np.ones(self.m) if self.weights is None else self.weights
        f, slope = ACTIVATIONS[self.activation]
        Z = self.Z + (0 if self.b is None else self.b)
        A = f(Z)
        z = self.W2.T @ A.T + (0 if self.b2 is None else self.b2[:, None])
        entry = LOSSES[self.loss]
        A_L = OUTPUT_ACTIVATIONS[entry.output_activation](np, z.copy(), np.empty_like(z))
        dz = w * entry.dZ(np, A_L, self.Y)
        dZ = (self.W2 @ dz).T * slope(Z)
        parts = [dZ.sum(axis=0), (dz @ A).T.ravel(), dz.sum(axis=1)] if self.b is not None else [(dz @ A).T.ravel()]
        sums = np.array([(w * entry.per_sample(np, z, self.Y)).sum(), w.sum()])
        return {"dZ": dZ, "tail": np.concatenate(parts), "logits": z.T, "sums": sums, "A_L": A_L}

    def launch(self, module, blocks=3, layout="packed", backward=True, stages=2, samples=None):
        """{what is written: its value}, by the kernels."""
        dtype, n, m, n_out = self.dtype, self.n, self.m, self.n_out
        item, N = np.dtype(dtype).itemsize, width(n_out)
        layout = "strided" if N == 16 else layout
        line = -(-n * item // 16) * 16 // item if layout == "packed" else n + 1
        before = np.full((m, line), np.nan, dtype)
        before[:, :n] = self.Z
        Z = fake_cupy.copied(before, shift=0 if layout == "packed" else item)
        shape = shape_of(n, n_out, dtype, self.b is not None, stages)
        samples = np.int32(samples or shape.samples)
        tiles = tiles_of(n, n_out, dtype)
        logits = fake_cupy.allocate((m, n_out), dtype)
        length = n * n_out + (0 if self.b is None else n + n_out)
        partial = fake_cupy.copied(np.full((blocks, length), np.nan, dtype))
        kernel = module.get_function(f"hidden_layer_{N}_{self.activation}_{dtype}_{layout}")
        weights = self.given("weights")

        def run(Y, logits, given):
            kernel(
                (blocks, tiles), (THREADS,),
                (Z, np.int64(line), pointer(self.given("b")), self.given("W2"), pointer(self.given("b2")), *strided(Y),
                 *strided(weights)[::2], logits, partial, np.int64(m), np.int32(n), np.int32(n_out),
                 *self.loss_numbers(np.int32(shape.team.bit_length() - 1), samples, np.int32(given))),
                shared_mem=shape.shared_bytes,
            )  # fmt: skip

        if tiles > 1:
            parts = fake_cupy.allocate((tiles, m * n_out), dtype)
            run(None, parts, given=False)
            logits = fake_cupy.copied(sum_rows(parts).reshape(m, n_out))
        if tiles == 1 or backward:
            run(self.given("Y") if backward else None, logits, given=tiles > 1)
        for x in (Z, logits, partial):
            x.memory.check("hidden_layer")
        after = Z.get()
        assert np.isnan(after[:, n:]).all()
        if backward:
            return {"dZ": after[:, :n], "tail": sum_rows(partial), "logits": logits.get()}
        assert np.array_equal(after, before, equal_nan=True)
        assert np.isnan(partial.get()).all()
        return {"logits": logits.get()}

    def launch_outputs(self, module, outputs, blocks=2):
        """J and A_L from the logits."""
        dtype = self.dtype
        logits = fake_cupy.copied(np.ascontiguousarray(self.expected()["logits"], dtype))
        sums, numbers = fake_cupy.allocate((blocks, 2), "float64"), (np.int64(self.m), np.int32(self.n_out))
        Y, weights = self.given("Y"), self.given("weights")
        outputs.get_function(f"losses_{dtype}")(
            (blocks,), (THREADS,), (logits, *strided(Y), *strided(weights)[::2], sums, *numbers, *self.loss_numbers()),
            shared_mem=16 * THREADS,
        )  # fmt: skip
        out = fake_cupy.allocate((self.n_out, self.m), dtype)
        outputs.get_function(f"outputs_{dtype}")(
            (blocks,), (THREADS,), (logits, *strided(out), *numbers, *self.loss_numbers())
        )
        for x in (logits, sums, out):
            x.memory.check("output_layer")
        return {"sums": sum_rows(sums), "A_L": out.get()}

    def given(self, name):
        """An array on the fake GPU; Y and weights with strides of their own."""
        x = getattr(self, name)
        if x is None:
            return None
        x = np.asarray(x, self.dtype)
        if name == "weights":
            return fake_cupy.copied(np.repeat(x[None], 2, axis=1))[:, ::2]
        return fake_cupy.copied(np.asfortranarray(x) if name == "Y" else np.ascontiguousarray(x))

    def loss_numbers(self, *before_most):
        return (
            np.int32(LOSSES[self.loss].code),
            *before_most,
            np.dtype(self.dtype).type(largest_exponent(self.dtype)),
        )


def sum_rows(x):
    """The second kernel: Σ over rows."""
    rows, count = x.shape
    out = fake_cupy.allocate((count,), x.dtype)
    module = emulator.compile_source(kernel_sources.source("sum_rows.cu"))
    arguments = (x, np.int64(rows), np.int64(rows), np.int64(count), out)
    module.get_function(f"sum_rows_{x.dtype}")((-(-count // 32),), (32, 8), arguments, shared_mem=256 * x.itemsize)
    return out.get()


@pytest.fixture(scope="module")
def module(compiler):
    """The kernels of hidden_layer.cu."""
    return emulator.compile_source(kernel_sources.source("hidden_layer.cu"))


@pytest.fixture(scope="module")
def outputs(compiler):
    """The kernels of output_layer.cu."""
    return emulator.compile_source(kernel_sources.source("output_layer.cu"))


def check(got, expected, dtype, terms):
    for name, x in got.items():
        right = expected[name]
        allowed = 8 * np.sqrt(terms + 4) * np.finfo(dtype).eps * np.abs(right).max()
        np.testing.assert_allclose(x, right, rtol=0, atol=allowed, err_msg=name)


# Tails of packs, teams of all sizes, one team a block and many, fewer samples than a round, several rounds a block, and
# units of several blocks.
SHAPES = [
    (1, 1),
    (3, 50),
    (8, 7),
    (30, 100),
    (64, 33),
    (100, 19),
    (130, 40),
    (500, 9),
    (1024, 5),
    (1025, 30),
    (2600, 3),
]


@pytest.mark.parametrize("layout", ["packed", "strided"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_out", [1, 2, 4, 5, 16])
def test_gradients_of_every_shape(module, n_out, dtype, layout):
    """The orders of the threads take turns."""
    for number, (n, m) in enumerate(SHAPES, n_out + (layout == "packed")):
        case = Case(n, m, n_out, dtype, bias=n % 2 == 0, weighted=m % 2 == 0)
        with emulator.thread_order(emulator.ORDERS[number % 3]):
            check(case.launch(module, layout=layout), case.expected(), dtype, n + m)


@pytest.mark.parametrize("layout", ["packed", "strided"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_out", [1, 3, 7])
def test_activations_and_losses(module, outputs, n_out, dtype, layout):
    """All of both by each kernel, with and without biases and weights; which one meets which is the same code."""
    activations, flags = itertools.cycle(CUDA_ACTIVATIONS), itertools.cycle(itertools.product((True, False), repeat=2))
    for loss, activation, (bias, weighted) in zip(CUDA_LOSSES, activations, flags, strict=False):
        case = Case(20, 30, n_out, dtype, activation, loss, bias, weighted is not (loss == "poisson"))
        for backward in (True, False):
            check(case.launch(module, layout=layout, backward=backward), case.expected(), dtype, 100)
        check(case.launch_outputs(module, outputs), case.expected(), dtype, 100)


@pytest.mark.parametrize("n_out", [3, 16])
def test_numbers_do_not_depend_on_the_samples_of_a_round(module, n_out):
    """Few samples are spread over more blocks: the most of a round, or fewer."""
    case = Case(300, 40, n_out, "float32", weighted=True)
    for samples in (2, 4):
        check(case.launch(module, samples=samples), case.expected(), "float32", 300)


def one_kernel(case, text, layout):
    """The kernel of a case alone, compiled from a changed source."""
    N = width(case.n_out)
    pack, layout = (16 // np.dtype(case.dtype).itemsize, layout) if layout == "packed" and N < 16 else (1, "strided")
    one = f"{N},{case.activation.upper()},{case.activation},{C_TYPES[case.dtype]},{case.dtype},{pack},{layout}"
    return emulator.compile_source(f"#define ONE {one}\n{text}")


def changed(old, new):
    """The source with a line changed."""
    text = kernel_sources.source("hidden_layer.cu")
    assert text.count(old) == 1
    return text.replace(old, new)


@pytest.mark.parametrize(
    ("n", "n_out", "dtype", "layout"),
    [(70, 1, "float32", "packed"), (1100, 3, "float64", "strided"), (300, 16, "float32", "")],
)
def test_older_gpus_copy_at_once(thread_order, n, n_out, dtype, layout):
    """A ring of one stage."""
    case = Case(n, 50, n_out, dtype, weighted=True)
    module = one_kernel(case, changed("HAS_ASYNC_COPIES = true", "HAS_ASYNC_COPIES = false"), layout)
    check(case.launch(module, layout=layout, stages=1), case.expected(), dtype, n + 50)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("        wait_for_copies<STAGES - 1>();\n", ""),
        ("wait_for_copies<STAGES - 1>", "wait_for_copies<STAGES>"),
        ("(stage + STAGES - 1) % STAGES, round + (STAGES - 1) * rounds", "stage, round + rounds"),
        ("p.Y) store<T, V>(place, a, V)", "p.Y) return"),
    ],
    ids=["no wait", "waits for too few", "copies into the stage in use", "A not kept"],
)
def test_mistakes_with_the_ring_are_noticed(old, new):
    case = Case(70, 300, 1, "float32")
    with pytest.raises(AssertionError):
        check(case.launch(one_kernel(case, changed(old, new), "packed")), case.expected(), "float32", 370)


def test_few_samples_reach_all_blocks():
    """The most samples of a round only where there are enough for every block."""
    shape = shape_of(512, 10, "float32", True, 2)
    assert (shape.team, shape.samples) == (256, 16)
    assert [samples_of(m, shape, 16, 264) for m in (1, 256, 300, 1000, 60_000)] == [1, 1, 2, 4, 16]
    assert [samples_of(m, shape_of(1024, 1, "float32", True, 2), 1, 528) for m in (1, 256, 60_000)] == [4, 4, 4]


@pytest.mark.parametrize(("n_out", "blocks"), [(1, 4), (4, 3), (16, 2)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_shared_memory_leaves_room_for_the_blocks(n_out, blocks, dtype):
    """Of as many blocks as the registers allow (`Share::BLOCKS`), on sm_90; with one stage, of one block on sm_75."""
    blocks = min(blocks, 2 if n_out == 4 else 3) if dtype == "float64" else blocks
    for n in (3, 30, 100, 130, 500, 1024, 5000):
        assert blocks * (shape_of(n, n_out, dtype, True, 2).shared_bytes + 1024) <= 228 * 1024
        assert shape_of(n, n_out, dtype, True, 1).shared_bytes <= 64 * 1024


@pytest.mark.parametrize(("capability", "stages"), [("75", 1), ("80", 2), ("90", 2)])
def test_stages_follow_the_gpu(cupy, monkeypatch, capability, stages):
    monkeypatch.setattr(cupy.cuda.Device, "compute_capability", capability)
    layer = HiddenLayer(Launcher(cupy), cupy, Architecture((3, 64, 1), dtype="float32"))
    assert layer._shape == shape_of(64, 1, "float32", True, stages)


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_do_not_depend_on_the_order_of_threads(module, dtype):
    results = []
    case = Case(70, 200, 3, dtype, weighted=True)
    for order in emulator.ORDERS:
        with emulator.thread_order(order):
            results.append(case.launch(module, blocks=4))
    for other in results[1:]:
        assert all(np.array_equal(other[name], results[0][name]) for name in other)


def test_logits_of_units_of_several_blocks(module, thread_order):
    for n_out in (1, 5):
        case = Case(1100, 20, n_out, "float32")
        check(case.launch(module, backward=False), case.expected(), "float32", 1100)
