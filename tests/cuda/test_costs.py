"""The predicted times of steps against those that were measured; numbers that predictions share with the kernels."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from harness import fake_cupy, measured_steps
from harness.emulator import compile_source

from fusedmlp.backends.cupy import costs, kernel_sources
from fusedmlp.backends.cupy.cards import CARDS, H200, card_named, card_of, derived
from fusedmlp.backends.cupy.hidden_layer import blocks_at_a_time
from fusedmlp.backends.cupy.narrow_step import KINDS, Variant, variant_of
from fusedmlp.backends.cupy.paths import estimate
from fusedmlp.model.architecture import Architecture

PRECISIONS = ("strict", "tf32")  # as the rows of times are named


def predicted(row, precision):
    """Milliseconds."""
    architecture = Architecture(row.sizes, *row.described, dtype=row.dtype)
    arithmetic = "tf32" if precision == "tf32" else row.dtype
    variant = variant_of(architecture, arithmetic, H200.shared_bytes, clusters=True) if row.path == "narrow" else None
    step = estimate(row.path, architecture, precision, H200, row.m, row.batch, variant=variant, launches=row.launches)
    return 1e3 * step.seconds


def timed():
    """(row, precision, milliseconds) of every time that was measured."""
    return [
        (row, precision, milliseconds)
        for row in measured_steps.ROWS
        for precision in PRECISIONS
        if (milliseconds := getattr(row, precision)) is not None
    ]


def name(value):
    return "-".join(map(str, value.sizes)) + f"-{value.path}" if hasattr(value, "sizes") else str(value)


@pytest.mark.parametrize(("row", "precision", "milliseconds"), timed(), ids=name)
def test_a_measured_step_is_predicted_within_a_quarter(row, precision, milliseconds):
    assert predicted(row, precision) == pytest.approx(milliseconds, rel=0.25)


def test_predictions_are_off_by_a_twelfth_on_average():
    errors = [abs(predicted(row, precision) / milliseconds - 1) for row, precision, milliseconds in timed()]
    assert len(errors) == 95
    assert sum(errors) / len(errors) < 1 / 12 + 0.005


@pytest.mark.parametrize(
    ("middle", "narrow", "precision"),
    [(*pair, precision) for pair in measured_steps.PAIRS for precision in PRECISIONS if getattr(pair[0], precision)],
    ids=name,
)
def test_the_faster_path_is_predicted(middle, narrow, precision):
    expected = getattr(middle, precision) < getattr(narrow, precision)
    assert (predicted(middle, precision) < predicted(narrow, precision)) == expected


PAGE = Path(__file__).parents[2] / "docs" / "gpu-paths.md"


def line_of_the_page(row):
    """A row of the page's table: what was measured, what is predicted, and how far that is off."""

    def cell(precision):
        measured = getattr(row, precision)
        if measured is None:
            return "–"
        milliseconds = predicted(row, precision)
        return f"{measured:.3g} / {milliseconds:.3g} ({100 * (milliseconds / measured - 1):+.0f} %)"

    grid = "–"
    if row.launches.ranges:
        grid = f"{row.launches.ranges} clusters"
    elif row.path == "middle" and row.launches.hidden_running != 2:
        grid = f"{row.launches.hidden_running} blocks"
    m = f"{row.m:,}" if row.batch is None else f"{row.batch:,} of {row.m:,}"
    sizes = "-".join(map(str, row.sizes)) + (" float64" if row.dtype == "float64" else "")
    return f"| {sizes} | {m} | {row.path} | {grid} | {cell('strict')} | {cell('tf32')} |"


def test_the_page_says_how_far_every_prediction_is_off():
    lines = [line_of_the_page(row) for row in measured_steps.ROWS]
    assert "\n".join(lines) in PAGE.read_text(encoding="utf-8"), "docs/gpu-paths.md: expected\n" + "\n".join(lines)


BOUNDS = """
extern "C" __global__ void bounds(int* out, int item, int R, int C, int N, int kind) {
    static_cast<void>(item), static_cast<void>(C);
    out[0] = %s;
}
"""


@pytest.mark.parametrize("clustered", [False, True])
def test_blocks_of_a_narrow_kernel_are_those_of_the_source(compiler, clustered):
    file, call = "narrow_step.cu", "steps_at_a_time(item, R, C, N, Arithmetic(kind))"
    if clustered:
        file, call = "narrow_cluster.cu", "blocks_at_a_time(R, N, Arithmetic(kind))"
    module = compile_source(kernel_sources.source(file) + BOUNDS % call, ("-DONE=1,2,4,float,STRICT,float32",))
    out = fake_cupy.copied(np.zeros(1, np.int32))
    for numbers in itertools.product((1, 4), (2, 4, 8, 16), (4, 8), KINDS):
        variant = Variant(*numbers, clustered)
        item, kind = np.dtype(variant.dtype).itemsize, ("STRICT", "TF32", "TF32X3").index(KINDS[variant.arithmetic])
        arguments = (item, variant.R, variant.C, variant.N, kind)
        module.get_function("bounds")((1,), (1,), (out, *map(np.int32, arguments)))
        assert variant.blocks_at_a_time == out.get()[0], variant


def test_blocks_of_the_hidden_layer_are_those_of_the_source(compiler):
    cases = list(itertools.product((("float32", 4), ("float64", 2)), (True, False), (1, 4, 16)))
    shares = (
        f"Share<{'float' if dtype == 'float32' else 'double'}, {pack if packed else 1}, {N}>::BLOCKS"
        for (dtype, pack), packed, N in cases
    )
    text = f'extern "C" __global__ void shares(int* out) {{ int all[] = {{{", ".join(shares)}}};'
    text += f" for (int i = 0; i < {len(cases)}; ++i) out[i] = all[i]; }}"
    module = compile_source(
        kernel_sources.source("hidden_layer.cu") + text, ("-DONE=1,RELU,relu,float,float32,4,packed",)
    )
    out = fake_cupy.copied(np.zeros(len(cases), np.int32))
    module.get_function("shares")((1,), (1,), (out,))
    assert [blocks_at_a_time(N, dtype, packed) for (dtype, _), packed, N in cases] == out.get().tolist()


def test_clusters_are_those_that_the_driver_allows():
    """Of 132 multiprocessors: 30 clusters of 4 blocks, 15 of 8; 66 of 2 run on all."""
    for n, n_in, clusters in ((1024, 64, 30), (1024, 128, 15), (512, 64, 66)):
        variant = variant_of(Architecture((n_in, n, 1)), "float32", H200.shared_bytes, clusters=True)
        assert costs.narrow_kernel(H200, variant, n, (n_in, 1), 2**20, "step")[1] == clusters


def test_rates_of_a_card_that_was_not_measured():
    """An H200's own properties give the rates that were measured; other cards follow theirs."""
    like = derived("like an H200", 90, 132, 227 * 1024, 1.98e9, 3.201e9, 6144)
    for rate in ("copy", "strict", "tf32", "float64"):
        assert getattr(like, rate) == pytest.approx(getattr(H200, rate), rel=0.02)
    assert not like.measured
    assert card_of(like) == like
    assert card_of(like._replace(name="NVIDIA H200")) == H200
    part = like._replace(name="NVIDIA H200 MIG 3g.71gb", multiprocessors=60)
    assert card_of(part) == part
    t4 = CARDS["t4"]
    assert (t4.tf32, t4.has_tf32, t4.has_clusters, t4.arithmetics("medium", "float32")) == (
        0,
        False,
        False,
        ("float32",),
    )
    assert t4.copy == pytest.approx(0.84 * 320e9, rel=0.01)
    assert CARDS["a100"].tf32 == pytest.approx(0.816 * 156e12, rel=0.01)
    assert CARDS["rtx4090"].strict == pytest.approx(0.764 * 82.6e12, rel=0.01)


def test_without_clocks_the_rates_are_an_h200s_by_multiprocessor():
    card = derived("virtual", 90, 66, 227 * 1024, 0, 0, 0)
    for rate in ("copy", "strict", "tf32", "float64"):
        assert getattr(card, rate) == pytest.approx(getattr(H200, rate) / 2, rel=0.02)


def test_a_card_without_a_name():
    with pytest.raises(ValueError, match="card: expected one of h200, h100, a100, rtx4090, l4, t4; got 'k80'"):
        card_named("k80")
