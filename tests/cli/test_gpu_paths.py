"""``fusedmlp info --shape``: the path of a network on a GPU, which need not be there."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

from fusedmlp.backends.cupy import CupyBackend
from fusedmlp.backends.cupy.cards import CARDS, H200
from fusedmlp.backends.cupy.paths import choose_path
from fusedmlp.model.architecture import Architecture


def rows(output):
    """[{path: (time, bytes, flops, launches) as printed}] of each precision."""
    tables = output.split("path            time     bytes     flops  launches\n")[1:]
    row = re.compile(r"^  (narrow|middle|composed) +(\S+ \S+) +(\S+ \S+) +(\S+(?: \S)?) +(\d+)$", re.MULTILINE)
    return [{path: rest for path, *rest in row.findall(table)} for table in tables]


def test_a_full_batch(run):
    output = run("info", "--shape", "128-1024-1", "--card", "h200", "--samples", "1000000")
    assert output.startswith("network: 128-1024-1, sigmoid, binary_cross_entropy, float32, biases\n")
    assert "card:    NVIDIA H200: 4,135 GB/s, 51.1 TFLOP/s strict, with TF32 437 (measured)\n" in output
    assert "step:    all 1,000,000 samples; what follows is predicted, not measured\n" in output
    tables = rows(output)
    assert all(table.keys() == {"narrow", "middle", "composed"} for table in tables)
    for precision, printed in zip(("strict", "high", "medium"), tables, strict=True):
        choice = choose_path(Architecture((128, 1024, 1)), precision, H200, 1000000)
        assert f"{precision}: {choice.path}\n  {choice.why}\n" in output
        for estimate in (choice.estimate, *choice.rejected):
            time, moved, flops, launches = printed[estimate.path]
            assert float(time.removesuffix(" ms")) == pytest.approx(1e3 * estimate.seconds, rel=0.01)
            unit = 1e9 if moved.endswith(" GB") else 1e6
            assert float(moved.split()[0]) * unit == pytest.approx(estimate.bytes, rel=0.01)
            assert float(flops.removesuffix(" G")) * 1e9 == pytest.approx(estimate.flops, rel=0.01)
            assert int(launches) == estimate.launches


def test_a_mini_batch(run):
    network = ("--shape", "20-30-3", "--activation", "relu", "--loss", "categorical_cross_entropy", "--no-bias")
    output = run("info", *network, "--samples", 5000, "--batch-size", 64, "--precision", "strict", "--card", "a100")
    assert "network: 20-30-3, relu, categorical_cross_entropy, float32, no biases\n" in output
    assert "step:    a batch of 64 of 5,000 samples, with Adam; " in output
    assert "(from its properties, not measured)" in output
    (strict,) = rows(output)
    assert (
        "strict: resident\n  the network stays in the shared memory of a block, and a step has no launches\n" in output
    )
    assert re.search(r"^  resident .* 0$", output, re.MULTILINE)
    assert "resident" not in run("info", *network, "--samples", 5000)
    assert strict["narrow"][0].endswith(" µs")
    assert "medium:" not in output
    assert "a batch of 50 of 50 samples" in run("info", *network, "--samples", 50, "--batch-size", 64)


@pytest.mark.parametrize(
    ("options", "why"),
    [(("--card", "t4"), "TF32 is not on the NVIDIA T4"), (("--dtype", "float64"), "for float32 alone")],
)
def test_without_tf32_there_is_one_table(run, options, why):
    assert len(rows(run("info", "--shape", "9-8-1", *options))) == 1
    for asked, precision in (("tf32", "medium"), ("medium", "medium"), ("high", "high")):
        output = run("info", "--shape", "9-8-1", "--precision", asked, *options)
        assert len(rows(output)) == 1
        assert re.search(rf"^{precision}: +products are strict, because .*{why}$", output, re.MULTILINE)


def test_high_is_strict_where_three_products_take_longer(run):
    shape = ("info", "--shape", "16-256-1", "--card", "rtx4090")
    assert re.findall(r"^(\w+): narrow|^(\w+): middle", run(*shape), re.MULTILINE)
    assert len(rows(run(*shape))) == 2
    strict, high = (rows(run(*shape, "--precision", name)) for name in ("strict", "high"))
    assert strict == high
    assert "high:    products are strict, because three products" in run(*shape, "--precision", "high")


def test_a_path_that_is_not_possible(run):
    output = run("info", "--shape", "9-8-1", "--activation", "gelu", "--precision", "strict")
    assert "strict: composed\n  not narrow: there is no CUDA function for the activation gelu; not middle: " in output
    assert re.search(r"^  middle    not possible: there is no CUDA function for the activation gelu$", output, re.M)


def test_the_card_is_the_one_here(run, monkeypatch):
    backend = CupyBackend()
    backend.__dict__["launcher"] = SimpleNamespace(card=lambda: CARDS["l4"]._replace(name="NVIDIA L4, here"))
    monkeypatch.setattr("fusedmlp.cli.gpu_paths.get_backend", lambda name: backend)
    for reason, text in ((None, "card:    NVIDIA L4, here: "), ("no GPU", "card:    NVIDIA H200: ")):
        monkeypatch.setattr("fusedmlp.cli.gpu_paths.unavailable_reason", lambda name, reason=reason: reason)
        output = run("info", "--shape", "9-8-1")
        assert text in output
        assert ("taken because this machine has no GPU that can be used" in output) == (reason is not None)
