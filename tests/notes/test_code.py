"""What docs/derivation.md says of the code beside its formulas: names, shapes, snippets, limits of floating point."""

from __future__ import annotations

import math
import re
from decimal import Decimal, localcontext

import numpy as np
import pytest
from examples import Example
from page import PAGE, examples
from test_formulas import resolve

from fusedmlp import Network
from fusedmlp.model.losses import LOSSES

QUOTED = {text for line in PAGE.splitlines() if line[:3] != "| S" for text in re.findall(r"`([^`]+)`", line)}
COLUMNS = ["Z1", "A1", "Z2", "A2", "J", "dZ2", "dW2", "db2", "dZ1", "dW1", "db1"]
ROWS = ["z2", "a2", "z3", "yhat", "J", "delta3", "dJdW2", "delta2", "dJdW1"]


@pytest.mark.parametrize("section", ["first", "logistic", "second", "recursion", "mean", "sum"])
def test_the_network_that_is_differentiated_is_the_codes(section):
    """`Example.forward`, whose derivatives the page is compared with, gives every quantity that the code gives."""
    for example in examples(section):
        for (name, number), value in Example.forward(example, {}).items():
            if (name, number) in example.quantities:
                np.testing.assert_allclose(example.quantities[name, number], value, rtol=1e-12, atol=1e-15)


def test_trace_holds_every_quantity_of_the_first_note_in_the_order_of_computation():
    example = examples("first")[0]
    trace = example.net.trace(example.X, example.Y)
    assert list(trace) == COLUMNS
    assert {np.asarray(value).dtype for value in trace.values()} == {np.dtype("float64")}


def test_gradients_of_single_samples_average_to_the_matrix_form():
    """The mean of what batches of one sample give is what the batch of all gives, for every gradient and J."""
    example = examples("first")[0]
    m, trace = example.sizes["m"], example.net.trace(example.X, example.Y)
    alone = [example.net.trace(example.X[:, [i]], example.Y[:, [i]]) for i in range(m)]
    for name in ("J", "dW1", "db1", "dW2", "db2"):
        np.testing.assert_allclose(sum(one[name] for one in alone) / m, trace[name], rtol=1e-13, atol=1e-16)
    for name in ("Z1", "A1", "Z2", "A2", "dZ2", "dZ1"):
        np.testing.assert_allclose(np.hstack([one[name] for one in alone]), trace[name], rtol=1e-13, atol=1e-16)


@pytest.mark.parametrize("bias", [True, False])
def test_rows_are_the_transposes_of_columns(bias):
    """`trace(rows=True)` gives the quantities of `trace` for a deep network, under the second note's names."""
    net = Network([3, 4, 2, 3, 2], "tanh", "sum_squared_error", bias, "float64", "numpy", random_state=1)
    generator = np.random.default_rng(2)
    X, y = generator.normal(size=(6, 3)), generator.uniform(size=(6, 2))
    columns, rows = net.trace(X.T, y.T), net.trace(X, y, rows=True)
    assert len(rows) == len(columns)
    assert rows["J"] == columns["J"]
    np.testing.assert_array_equal(rows["yhat"], columns["A4"].T)
    for layer in (1, 2, 3, 4):
        np.testing.assert_array_equal(rows[f"z{layer + 1}"], columns[f"Z{layer}"].T)
        np.testing.assert_array_equal(rows[f"delta{layer + 1}"], columns[f"dZ{layer}"].T)
        np.testing.assert_array_equal(rows[f"dJdW{layer}"], columns[f"dW{layer}"])
        if layer < 4:
            np.testing.assert_array_equal(rows[f"a{layer + 1}"], columns[f"A{layer}"].T)
        if bias:
            np.testing.assert_array_equal(rows[f"dJdb{layer}"], columns[f"db{layer}"].T)


# What the page quotes ------------------------------------------------------------------------------------------------


def executed() -> dict[str, bool]:
    """Every expression on the page, and whether it gives what the page says."""
    first, second = examples("first")[0], examples("second")[0]
    names = first.net.trace(first.X, first.Y) | {"np": np, "Network": Network, "Y": first.Y, "m": first.sizes["m"]}
    names |= {"n1": 4, "n2": 3, "n3": 2, "net": second.net, "X": second.X.T, "y": second.Y.T}

    def value(expression: str):
        return eval(expression, dict(names))

    regression = "Network([n1, 1])"
    squared = 'Network([n1, n2, n3], bias=False, loss="sum_squared_error")'
    one_output, outputs = "np.sum(A2 - Y) / m", "dZ2.sum(axis=1, keepdims=True) / m"
    in_rows = "net.trace(X, y, rows=True)"
    return {
        regression: [W.shape for W in value(regression).weights] == [(4, 1)],
        squared: not value(squared).biases and value(squared).architecture.loss == "sum_squared_error",
        one_output: np.isclose(value(one_output), names["db2"].item(), rtol=1e-12),
        outputs: np.allclose(value(outputs), names["db2"], rtol=1e-12),
        in_rows: list(value(in_rows)) == ROWS,
    }


def test_code_on_the_page():
    """Code on the page is an expression that is executed, a key of `trace`, a test, or a name inside of fusedmlp."""
    snippets = executed()
    assert all(snippets.values()), snippets
    assert set(snippets) <= QUOTED
    for text in QUOTED - set(snippets) - {"fusedmlp"} - set(COLUMNS) - set(ROWS):
        if not text.startswith("tests/"):
            resolve(text)


def test_every_test_on_the_page_exists():
    references = re.findall(r"tests/notes/(\w+)\.py::(\w+)", PAGE)
    assert len(references) > 10
    for module, function in references:
        assert callable(getattr(__import__(module), function))


# Floating point ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "limit"), [("float64", 53 * math.log(2)), ("float32", 24 * math.log(2))])
def test_the_loss_from_the_output_breaks_where_the_loss_from_the_logit_does_not(dtype, limit):
    """Past z = ln 2 · (bits of the type) the output is exactly 1, and log(1 - a) of a wrong answer infinite."""
    net = Network([1, 1], bias=False, dtype=dtype, backend="numpy")
    net.weights[0][...] = 1  # the logit is the input
    for factor, lost in ((0.99, False), (1.01, True)):
        X = np.array([[limit * factor]], dtype=dtype)
        a = net.forward(X)
        assert bool(a.item() == 1) is lost
        with np.errstate(divide="ignore"):
            assert bool(np.isinf(-np.log(1 - a)).item()) is lost
        np.testing.assert_allclose(net.loss(X, [[0]]), limit * factor, rtol=1e-6)


@pytest.mark.parametrize(
    ("loss", "dtype"),
    [
        *(
            (loss, dtype)
            for loss in LOSSES
            if loss not in ("squared_error", "poisson", "huber", "absolute_error", "quantile")
            for dtype in ("float32", "float64")
        ),
        ("squared_error", "float32"),
        ("poisson", "float32"),
        ("absolute_error", "float32"),
        ("huber", "float32"),
        ("quantile", "float32"),
    ],
)
def test_losses_are_finite_for_huge_logits(loss, dtype):
    largest = float(np.finfo(dtype).max) / 4
    Z = np.array([[largest, -largest, 0.0], [-largest, largest, 1.0]], dtype=dtype)
    Y = np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=dtype)
    j = LOSSES[loss].per_sample(np, Z, Y)
    assert j.dtype == np.float64
    assert np.isfinite(j).all()


def test_cross_entropies_are_exact_for_every_logit():
    """From the logits, beside 1,000 digits: enough for 1 - exp(-2000)."""
    logits = [-1e3, -40.0, -1.5, -1e-8, 0.0, 0.3, 2.0, 37.0, 1e3]
    Z = np.array([logits, np.zeros(len(logits))])
    with localcontext() as context:
        context.prec = 1000
        exponentials = [Decimal(z).exp() for z in logits]
        truth = {1.0: [float((1 + 1 / e).ln()) for e in exponentials], 0.0: [float((1 + e).ln()) for e in exponentials]}
    for y, expected in truth.items():  # the softmax of (z, 0) is the sigmoid of z
        Y = np.array([np.full(len(logits), y), np.full(len(logits), 1 - y)])
        binary = LOSSES["binary_cross_entropy"].per_sample(np, Z[:1], Y[:1])
        np.testing.assert_allclose(binary, expected, rtol=1e-13, atol=1e-300)
        np.testing.assert_allclose(
            LOSSES["categorical_cross_entropy"].per_sample(np, Z, Y), expected, rtol=1e-13, atol=1e-16
        )
