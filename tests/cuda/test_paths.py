"""The choice of a path, and the bytes and flops that are predicted: those that the launches of a step have."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from harness import fake_cupy, traffic

from fusedmlp import Gradients, Network, Parameters
from fusedmlp.backends.cupy import CupyBackend, steps
from fusedmlp.backends.cupy.cards import CARDS, H200
from fusedmlp.backends.cupy.costs import Launches
from fusedmlp.backends.cupy.cuda_tables import CUDA_ACTIVATIONS, CUDA_LOSSES
from fusedmlp.backends.cupy.middle_engine import MiddleEngine
from fusedmlp.backends.cupy.narrow_engine import NarrowEngine
from fusedmlp.backends.cupy.narrow_step import variant_of
from fusedmlp.backends.cupy.paths import choose_path, estimate, resident_step
from fusedmlp.backends.cupy.resident_costs import fastest_arithmetic
from fusedmlp.backends.cupy.resident_plan import plan_of
from fusedmlp.model.activations import HIDDEN_ACTIVATIONS
from fusedmlp.model.architecture import Architecture
from fusedmlp.model.losses import LOSSES
from fusedmlp.model.optimizers import Adam, OptimizerState

KERNELS = ("activate", "fused_backward", "times_derivative", "hidden_layer", "narrow_step", "narrow_cluster")
KERNELS += ("narrow_forward", "lower_layer", "sum_rows", "losses", "gather", "finish", "adam")


class Run:
    """An engine on the emulator, with samples, the ledger of what it moves, and what is predicted for it."""

    def __init__(self, monkeypatch, cupy, path, sizes, m, clusters=True, **described):
        self.ledger = traffic.count(monkeypatch, cupy)
        self.backend = CupyBackend()
        self.architecture = Architecture(sizes, **described)
        self.path, self.m, self.card = path, m, self.backend.launcher.card()
        self.variant = None
        ranges = None
        if path == "narrow":
            self.variant = variant_of(self.architecture, self.architecture.dtype, self.card.shared_bytes, clusters)
            self.engine = NarrowEngine(self.backend, self.architecture, self.variant)
            ranges = self.engine._narrow._ranges_at_a_time("cluster" if self.variant.clustered else "step")
        elif path == "middle":
            self.engine = MiddleEngine(self.backend, self.architecture)
        else:
            self.engine = self.backend.engine(self.architecture, fused=False)
        self.launches = Launches(2, 2, ranges)  # the emulator's driver says so of every kernel
        self.dtype = self.architecture.dtype
        self.parameters = Parameters(self.architecture, self.random(self.architecture.n_parameters))
        self.gradients = Gradients(self.architecture, self.random(self.architecture.n_parameters))
        self.X, self.Y = self.random((m, sizes[0])).T, self.random((sizes[-1], m))

    def random(self, shape):
        return fake_cupy.copied(np.random.default_rng(0).uniform(0.1, 0.9, shape).astype(self.dtype))

    def predicted(self, batch=None, samples=None):
        return estimate(
            self.path, self.architecture, "strict", self.card, samples or self.m, batch,
            variant=self.variant, launches=self.launches,
        )  # fmt: skip

    def moved(self):
        """(operation, bytes) of the products and the kernels."""
        names = [(kernel, kernel) for kernel in KERNELS] + [("matmul", "product")]
        return [
            (name, move.loaded + move.stored)
            for move in self.ledger.moves
            for beginning, name in names
            if move.name.startswith(beginning)
        ]


PASSES = [
    ("narrow", (9, 100, 1), 300, {}),
    ("narrow", (9, 100, 3), 30, {"loss": "categorical_cross_entropy", "bias": False}),
    ("narrow", (20, 300, 2), 300, {"dtype": "float64"}),
    ("narrow", (20, 300, 1), 300, {"clusters": False}),
    ("middle", (20, 100, 1), 300, {}),
    ("middle", (5, 1030, 2), 100, {"bias": False}),
    ("middle", (20, 100, 10), 100, {"dtype": "float64"}),
    ("middle", (20, 40, 30, 3), 600, {}),
    ("middle", (9, 12, 20, 5, 1), 40, {"hidden_activation": "identity"}),
    ("middle", (20, 64, 40, 32, 3), 600, {"hidden_activation": "relu"}),
    ("middle", (20, 40, 30, 3), 100, {"hidden_activation": "relu", "dtype": "float64", "bias": False}),
    ("composed", (20, 40, 30, 3), 600, {}),
    ("composed", (9, 1), 600, {"bias": False}),
]


@pytest.mark.parametrize(("path", "sizes", "m", "described"), PASSES)
def test_operations_and_bytes_are_those_of_the_launches(monkeypatch, cupy, path, sizes, m, described):
    """Operation by operation, to the byte; CuPy's own operations on the outputs within one in a hundred."""
    run = Run(monkeypatch, cupy, path, sizes, m, **described)
    run.ledger.clear()
    run.engine._pass(run.parameters, run.X, run.Y, None, run.gradients)
    predicted = run.predicted()
    known = {name for name, _ in run.moved()}
    assert [(x.name, x.bytes) for x in predicted.operations if x.name in known] == run.moved()
    if path == "composed":
        assert predicted.bytes == pytest.approx(run.ledger.of(), rel=0.01)
        assert predicted.launches == len(run.ledger.moves)
    else:
        assert predicted.bytes == run.ledger.of()


@pytest.mark.parametrize(("path", "sizes", "m", "described"), PASSES)
def test_flops_are_those_of_the_products_and_of_the_headers(monkeypatch, cupy, path, sizes, m, described):
    run = Run(monkeypatch, cupy, path, sizes, m, **described)
    flops = []
    matmul = CupyBackend.matmul

    def counted(backend, a, b, out=None):
        flops.append(2 * a.shape[0] * a.shape[1] * b.shape[1])
        return matmul(backend, a, b, out=out)

    monkeypatch.setattr(CupyBackend, "matmul", counted)
    run.engine._pass(run.parameters, run.X, run.Y, None, run.gradients)
    operations = {x.name: x.flops for x in run.predicted().operations}
    assert [x.flops for x in run.predicted().operations if x.name == "product"] == flops
    *_, n_in, n, n_out = (0, *sizes)
    for name, claimed in (
        ("narrow_step", (4 * n_in + 6 * n_out + 20) * n * m),
        ("narrow_cluster", (4 * n_in + 6 * n_out + 20) * n * m),
        ("hidden_layer", (6 * n_out + 10) * n * m),
        ("losses", 40 * n_out * m),
    ):
        assert operations.get(name, claimed) == claimed


@pytest.mark.parametrize(
    ("path", "sizes", "size"), [("narrow", (9, 20, 1), 32), ("narrow", (9, 20, 2), 70), ("middle", (20, 24, 5), 32)]
)
@pytest.mark.parametrize("small_batch", [2048, 20])
@pytest.mark.usefixtures("never_resident")
def test_a_captured_step(monkeypatch, cupy, path, sizes, size, small_batch):
    """The kernels of two steps, and their bytes but for the order of the samples and a few numbers of the epoch.

    The emulator does not count products that a graph repeats.
    """
    for module in ("mini_batch", "steps"):
        monkeypatch.setattr(f"fusedmlp.backends.cupy.{module}.SMALL_BATCH", small_batch)
    run = Run(monkeypatch, cupy, path, sizes, 2 * size)
    state = OptimizerState(Adam(), cupy, run.parameters)
    order = np.random.default_rng(0).permutation(run.m)
    for _ in range(2):
        run.ledger.clear()
        run.engine.train_epoch(run.parameters, state, run.X, run.Y, None, order, size)
    operations = [x for x in run.predicted(size).operations * 2 if x.name != "product"]
    moved = [(name, n_bytes) for name, n_bytes in run.moved() if name != "product"]
    assert [x.name for x in operations] == [name for name, _ in moved]
    for operation, (_, n_bytes) in zip(operations, moved, strict=True):
        assert 0 <= n_bytes - operation.bytes <= (8 * size if operation.name == "gather" else 0) + 200


def test_operations_of_cupy_on_the_outputs(monkeypatch, cupy):
    """Composed: every loss, with several outputs, in both dtypes."""
    assert steps.OUTPUTS.keys() == LOSSES.keys()
    for loss, n_out, dtype in itertools.product(LOSSES, (2, 5), ("float32", "float64")):
        with monkeypatch.context() as patch:
            run = Run(patch, cupy, "composed", (3, n_out), 256, loss=loss, dtype=dtype)
            run.ledger.clear()
            run.engine._pass(run.parameters, run.X, run.Y, None, run.gradients)
            assert run.predicted().bytes == pytest.approx(run.ledger.of(), rel=0.02), (loss, n_out, dtype)
            assert run.predicted().launches == len(run.ledger.moves), loss


def test_operations_of_cupy_on_hidden_layers(monkeypatch, cupy):
    """Composed: every activation without a kernel."""
    assert steps.ACTIVATIONS.keys() == HIDDEN_ACTIVATIONS.keys() - set(CUDA_ACTIVATIONS)
    for activation, dtype in itertools.product(steps.ACTIVATIONS, ("float32", "float64")):
        with monkeypatch.context() as patch:
            run = Run(patch, cupy, "composed", (3, 64, 32, 2), 256, hidden_activation=activation, dtype=dtype)
            run.ledger.clear()
            run.engine._pass(run.parameters, run.X, run.Y, None, run.gradients)
            assert run.predicted().bytes == pytest.approx(run.ledger.of(), rel=0.02), (activation, dtype)
            assert run.predicted().launches == len(run.ledger.moves), activation


@pytest.mark.parametrize(
    ("sizes", "strict", "high", "medium"),
    [
        ((128, 1024, 1), "middle", "narrow", "middle"),
        ((100, 64, 1), "middle", "middle", "middle"),
        ((8, 32, 1), "middle", "middle", "narrow"),
        ((16, 256, 1), "narrow", "narrow", "narrow"),
        ((64, 1024, 1), "narrow", "narrow", "narrow"),
        ((32, 512, 1), "narrow", "narrow", "narrow"),
        ((784, 1024, 1), "middle", "middle", "middle"),
        ((784, 512, 512, 10), "middle", "middle", "middle"),
        ((16, 64, 17), "composed", "composed", "composed"),
        ((16, 1), "composed", "composed", "composed"),
    ],
)
def test_the_choice_on_an_h200(sizes, strict, high, medium):
    architecture = Architecture(sizes)
    for precision, expected in (("strict", strict), ("high", high), ("medium", medium), ("tf32", medium)):
        choice = choose_path(architecture, precision, H200)
        assert choice.path == expected
        assert (choice.variant is not None) == (expected == "narrow")
        known = {expected, *(other.path for other in choice.rejected), *(path for path, _ in choice.excluded)}
        assert known == {"narrow", "middle", "composed"}
        fused = [other.seconds for other in choice.rejected if other.path != "composed"]
        assert all(choice.estimate.seconds <= seconds for seconds in fused)


def test_high_takes_three_products_where_they_are_predicted_faster():
    """A card whose tensor cores are no faster than three times its FMA units has strict kernels alone."""
    for card in CARDS.values():
        for sizes in ((16, 256, 1), (64, 1024, 1), (64, 256, 4)):
            architecture = Architecture(sizes)
            high, strict = (choose_path(architecture, precision, card) for precision in ("high", "strict"))
            pays = card.compute_capability in (80, 90)
            assert high.estimate.seconds < strict.estimate.seconds if pays else high == strict
            if high.variant is not None:
                assert high.variant.arithmetic == ("tf32x3" if pays else "float32")
    # Tensor cores that are just worth it by their rate: the operands have to be split as well.
    architecture = Architecture((128, 128, 1))
    for tf32 in (3.01, 3.5, 6, 12):
        card = H200._replace(tf32=tf32 * H200.strict)
        variants = [variant_of(architecture, name, card.shared_bytes, True) for name in ("tf32x3", "float32")]
        seconds = [estimate("narrow", architecture, "high", card, 2**22, variant=one).seconds for one in variants]
        high = choose_path(architecture, "high", card)
        taken = {one.path: one for one in (high.estimate, *high.rejected)}["narrow"]
        assert taken.variant == variants[int(seconds[1] < seconds[0])]
    wide = Architecture((9, 20, 7))
    plan = plan_of(wide, Adam(), 40, H200.shared_bytes)
    assert fastest_arithmetic(plan, wide, "high", H200) == "tf32x3"
    assert fastest_arithmetic(plan, wide, "high", CARDS["rtx4090"]) == "float32"


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS.keys())
def test_every_network_has_a_path_on_every_card(card):
    """Also with the losses and activations that have no kernels; the fewest samples are one."""
    names = itertools.zip_longest(HIDDEN_ACTIVATIONS, LOSSES, fillvalue="squared_error")
    for activation, loss in names:
        covered = activation in CUDA_ACTIVATIONS and loss in CUDA_LOSSES
        sizes_of_all = itertools.product((1, 129), (1, 130, 1024, 3000), (2, 4, 16, 17))
        for sizes, dtype in itertools.product([*sizes_of_all, (5, 2), (9, 8, 700, 3)], ("float32", "float64")):
            architecture = Architecture(sizes, activation, loss, dtype=dtype)
            for batch in (None, 1, 70):
                choice = choose_path(architecture, "high", card, samples=71, batch=batch)
                assert choice.path == "composed" or covered
                assert choice.estimate.seconds > 0
                assert choice.estimate.bytes > 0
                assert choice.why


def test_batches_may_take_another_path():
    """Small networks: a step is its launches, and narrow has fewer."""
    architecture = Architecture((100, 64, 1))
    full, step = choose_path(architecture, "strict", H200), choose_path(architecture, "strict", H200, 10**6, 64)
    assert (full.path, step.path) == ("middle", "narrow")
    assert "1,000 samples of a large batch take" in full.why
    assert "a step on a batch of 64 takes" in step.why


def test_a_network_stays_resident_where_the_engine_says_so(emulated, cupy):
    """The prediction and the launches agree: small networks and batches, in one block without further launches."""
    card, X, Y = emulated.launcher.card(), np.ones((9, 80)), np.ones((1, 80))
    for sizes, activation in (((9, 20, 1), "relu"), ((9, 900, 1), "relu"), ((9, 20, 1), "gelu")):
        step = resident_step(Architecture(sizes, activation), "strict", card, 40)
        net = Network(sizes, activation, backend=emulated)
        del cupy.launches[:]
        net.fit(X, Y, epochs=1, batch_size=40)
        assert any(name.startswith("resident") for name in cupy.launches) == (step is not None)
        if step is not None:
            assert step.bytes == 4 * 10 * 40
            assert 0 < step.seconds < 16e-6


@pytest.mark.parametrize("sizes", [(5, 20, 1), (5, 200, 1)])
def test_engines_take_the_path_that_is_chosen(emulated, sizes):
    """For full batches and for mini-batches."""
    architecture, card = Architecture(sizes), emulated.launcher.card()
    engine = emulated.engine(architecture)
    assert engine.path == choose_path(architecture, "strict", card).path
    for size in (1, 32, 1000):
        chosen = choose_path(architecture, "strict", card, batch=size).path
        assert (engine.other_for_batches(size) or engine).path == chosen


@pytest.mark.parametrize(
    ("sizes", "dtype", "activation", "loss", "reasons"),
    [
        ((9, 8, 8, 1), "float32", "relu", "squared_error", {"narrow": "one hidden layer; the network has 2"}),
        (
            (9, 1025, 1),
            "float32",
            "relu",
            "squared_error",
            {"narrow": "at most 1,024 hidden units; the network has 1,"},
        ),
        ((129, 8, 1), "float32", "relu", "squared_error", {"narrow": "at most 128 inputs; the network has 129"}),
        ((9, 8, 5), "float32", "relu", "squared_error", {"narrow": "at most 4 outputs; the network has 5"}),
        (
            (65, 8, 1),
            "float64",
            "relu",
            "squared_error",
            {"narrow": "with 1 output its kernels in float64 have at most 64"},
        ),
        (
            (33, 8, 2),
            "float64",
            "relu",
            "squared_error",
            {"narrow": "with up to 4 outputs its kernels in float64 have a"},
        ),
        ((9, 8, 17), "float32", "relu", "squared_error", {"middle": "at most 16 outputs; the network has 17"}),
        ((9, 1), "float32", "relu", "squared_error", {"middle": "needs a hidden layer; the network has none"}),
        ((9, 8, 1), "float32", "gelu", "squared_error", {"middle": "no CUDA function for the activation gelu"}),
        ((9, 8, 1), "float32", "relu", "huber", {"narrow": "no CUDA function for the loss huber"}),
    ],
)
def test_why_a_path_is_excluded(sizes, dtype, activation, loss, reasons):
    choice = choose_path(Architecture(sizes, activation, loss, dtype=dtype), "strict", H200)
    excluded = dict(choice.excluded)
    for path, reason in reasons.items():
        assert reason in excluded[path]
        assert reason in choice.why


def test_a_block_has_too_little_shared_memory():
    choice = choose_path(Architecture((128, 64, 1)), "strict", CARDS["t4"])
    assert dict(choice.excluded)["narrow"].endswith("more shared memory than the 65,536 bytes that a block can have")
