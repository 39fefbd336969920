"""Every formula of docs/derivation.md holds, is computed by the code beside it, and cannot be changed unnoticed."""

from __future__ import annotations

import copy
import importlib
import re
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from examples import Example
from latex import TOKEN
from page import FORMULAS, MISTAKES, NOTATION, PROSE, Row, examples, failure, section

from fusedmlp.model.activations import HIDDEN_ACTIVATIONS
from fusedmlp.model.losses import LOSSES
from fusedmlp.model.optimizers import OPTIMIZERS
from fusedmlp.model.parameters import Gradients

LAYOUT = {
    "engines.samples.as_inputs": "it checks a matrix, and returns it as it is",
    "engines.samples.as_samples": "it checks matrices, and returns them as they are",
    "model.parameters.Parameters": "it stores the matrices",
    "model.architecture.Architecture.weight_shapes": "it gives shapes",
    "model.reference.in_rows": "it transposes and renames; test_code.py compares every name",
}
"""Named beside formulas without being arithmetic, so that a change of its results by 1 % says nothing."""


def holds(row: Row, networks: list[Example] | None = None) -> bool:
    return not any(
        failure(text, example, row.conditions(), shapes)
        for example in (examples(section(row)) if networks is None else networks)
        for text, shapes in row.shaped()
    )


@pytest.mark.parametrize("row", FORMULAS, ids=lambda row: row.id)
def test_formula(row):
    """All sides of every equation of the row agree, for every index, and have the shape that the row states."""
    for text, shapes in row.shaped():
        for example in examples(section(row)):
            assert not failure(text, example, row.conditions(), shapes), text


def test_every_activation_loss_and_optimizer_has_a_row():
    """A new one needs a row under "What the code adds", and its function in ACTIVATIONS or COSTS of `examples.py`."""
    assert {section(row) for row in FORMULAS} >= {*HIDDEN_ACTIVATIONS, *LOSSES, *OPTIMIZERS}


@pytest.mark.parametrize(("symbol", "shape"), NOTATION)
def test_notation_has_the_shapes_it_states(symbol, shape):
    for example in examples("general"):
        assert not failure(symbol, example, [], [shape])


@pytest.mark.parametrize(("heading", "text"), PROSE)
def test_formula_between_the_tables(heading, text):
    assert all(not failure(text, example) for example in examples(section(Row("", [""], heading))))


# Mistakes ------------------------------------------------------------------------------------------------------------


def forms(row: Row, cell: int) -> Iterator[str]:
    """How the formula of a cell fails on each network, in the note's own notation."""
    shape = re.findall(r"of shape (number|\$[^$]+\$)", row.cells[cell])
    for example in examples(section(row)) + examples(section(row), equal=True):
        if example.activation == "sigmoid":
            noted = copy.copy(example)
            noted.note = True
            yield failure(row.formulas(cell)[0], noted, row.conditions(cell), shape, clear=True)


@pytest.mark.parametrize("row", [row for row in MISTAKES if row.id != "M2.3"], ids=lambda row: row.id)
def test_printed_fails_and_corrected_holds(row):
    printed, corrected = set(forms(row, 1)), set(forms(row, 3))
    assert corrected == {""}
    assert ", ".join(sorted(printed)) == row.cells[5]


def test_the_loss_of_the_second_note_is_not_convex_in_the_weights():
    """M2.3: half-way between two orders of the same hidden units, the loss is larger than at both ends."""
    (example,) = examples("second")
    net, X = example.net, example.X
    Y, flat = net.forward(X), net.parameters.flat
    one = flat.copy()
    other = np.concatenate([net.weights[0][:, ::-1].ravel(), net.weights[1][::-1].ravel()])
    losses = []
    for weights in (one, other, (one + other) / 2):
        flat[...] = weights
        losses.append(net.loss(X, Y))
    flat[...] = one
    assert losses[0] == pytest.approx(losses[1], abs=1e-12)
    assert losses[2] > losses[0] + 1e-3


# The code beside the formulas ----------------------------------------------------------------------------------------


def resolve(name: str) -> Any:
    """The object of a dotted name inside of fusedmlp."""
    parts = name.split(".")
    for length in range(len(parts), -1, -1):
        try:
            found = importlib.import_module(".".join(["fusedmlp", *parts[:length]]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[length:]:
            found = getattr(found, attribute)
        return found
    raise ModuleNotFoundError(name)


def one_percent_more(result: Any) -> Any:
    """A number, an array or parameters (both in place), or several of them in a tuple or a dictionary, times 1.01."""
    if isinstance(result, dict):
        return {key: one_percent_more(value) for key, value in result.items()}
    if isinstance(result, tuple):
        values = (one_percent_more(value) for value in result)
        return type(result)(*values) if hasattr(result, "_fields") else tuple(values)
    if isinstance(result, Gradients):
        result.flat[...] *= 1.01
        return result
    if isinstance(result, np.ndarray):
        result *= 1.01
        return result
    return result * 1.01


def stand_in(number: int, free_variables: tuple[str, ...]) -> types.CodeType:
    """The code of a function that calls the global `_changed_{number}`, with as many free variables as are needed."""
    names = "".join(f"{name}, " for name in free_variables)
    source = f"def outer({names}):\n def f(*a, **k):\n  ({names})\n  return _changed_{number}(*a, **k)\n return f"
    local: dict[str, Any] = {}
    exec(source, local)
    return local["outer"](*free_variables).__code__


@contextmanager
def changed_results(name: str) -> Iterator[None]:
    """The functions behind a name, or in the rows of the table behind it, give 1 % more."""
    found = resolve(name)
    fields = [vars(row) for row in found.values()] if isinstance(found, dict) else [{"": found}]
    kept = {f: f.__code__ for row in fields for field, f in row.items() if callable(f) and field != "valid_targets"}
    assert kept, name
    for number, (function, code) in enumerate(kept.items()):
        original = types.FunctionType(code, function.__globals__, "", function.__defaults__, function.__closure__)
        original.__kwdefaults__ = function.__kwdefaults__

        def changed(*args: Any, f: Any = original, **options: Any) -> Any:
            result = f(*args, **options)
            for argument in args:
                if isinstance(argument, Gradients) or (result is None and isinstance(argument, np.ndarray)):
                    one_percent_more(argument)  # the function changes it in place
            return None if result is None else one_percent_more(result)

        # The code is exchanged, not the name: tables hold the function itself.
        function.__globals__[f"_changed_{number}"] = changed
        function.__code__ = stand_in(number, code.co_freevars)
    try:
        yield
    finally:
        for number, (function, code) in enumerate(kept.items()):
            function.__code__ = code
            del function.__globals__[f"_changed_{number}"]


def again(example: Example) -> Example:
    """The same network and samples, with everything computed anew."""
    return type(example)(*example.arguments)


@pytest.mark.parametrize("row", FORMULAS, ids=lambda row: row.id)
def test_the_code_beside_a_formula_computes_it(row):
    """With the results of the named code changed, the row does not hold; "in N1.33" is a row that has code."""
    names, others = re.findall(r"`([^`]+)`", row.cells[-1]), re.findall(r"in (\S+)", row.cells[-1])
    assert names or others
    by_id = {other.id: other for other in FORMULAS}
    assert all("`" in by_id[other].cells[-1] for other in others)
    for name in names:
        assert resolve(name) is not None
        if name in LAYOUT:
            continue
        with changed_results(name):
            try:
                networks = examples(section(row))
                same = holds(row, [again(example) for example in (networks[0], networks[-1])])
            except AssertionError:
                same = False  # what the engine gives is not what `Network.trace` gives
        assert not same, f"{row.id} holds whatever {name} computes"


# Changes of the page -------------------------------------------------------------------------------------------------

SWAPS = {"+": "-", "-": "+", r"\odot": "", "'": "", "W": "Z", "A": "Z", "Z": "A", "dZ": "Z", "y": "a", "X": "Y"}


def mutants(text: str) -> Iterator[str]:
    """A formula with one sign, transpose, prime, symbol, index or number changed, in every way that SWAPS knows."""
    tokens = [match.group() for match in TOKEN.finditer(text)]
    for at, token in enumerate(tokens):
        before, after = tokens[:at], tokens[at + 1 :]
        if token in SWAPS:
            yield "".join([*before, SWAPS[token], *after])
        if "".join(tokens[at : at + 4]) == r"^{\top}":
            yield "".join([*before, *tokens[at + 4 :]])
        if token.isdigit():
            yield "".join([*before, str(int(token) + 1), *after])
        if at and token in "ijkho" and tokens[at - 1] in "[,_":
            yield "".join([*before, "h" if token != "h" else "k", *after])


def is_noticed(row: Row, text: str, shapes: list[str]) -> bool:
    networks = examples(section(row))
    try:
        return any(failure(text, example, row.conditions(), shapes) for example in (networks[0], networks[-1]))
    except SyntaxError:
        return True


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_changes_of_formulas_are_noticed():
    """A sample of all changes. Of all 2,000, only those are not noticed that leave a formula true."""
    changes = [
        (row, changed, shapes)
        for row in FORMULAS
        for text, shapes in row.shaped()
        if "=" in text
        for changed in mutants(text)
    ]
    assert len(changes) > 1500
    for row, changed, shapes in changes[::25]:
        assert is_noticed(row, changed, shapes), f"{row.id}: {changed}"


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("N1.23", "=-", "="),
        ("N1.31", "(Z_1[:,i])", "(Z_2[:,i])"),
        ("N1.52", r"(A_2-Y)^{\top}", "(A_2-Y)"),
        ("N1.64", "-y_i", "+y_i"),
        ("N1.93", r"W_{l+1}\delta", r"W_{l+1}^{\top}\delta"),
        ("N2.18", r"\frac{1}{2}", ""),
        ("P.23", r"\sum_iw_ij_i}{\sum_iw_i}", r"\sum_iw_ij_i}{m}"),
    ],
)
def test_a_changed_formula_is_noticed(name, old, new):
    (row,) = (row for row in FORMULAS if row.id == name)
    assert any(is_noticed(row, text.replace(old, new), shapes) for text, shapes in row.shaped() if old in text)


@pytest.mark.parametrize(
    ("name", "cell", "old", "new"),
    [("M1.16", 3, r"\odot\sigma'(Z^{(1)})", r"\odot\sigma'(Z^{(2)})"), ("M1.4", 3, "b^{(2)}", "b^{(1)}")],
)
def test_a_changed_correction_is_noticed(name, cell, old, new):
    (row,) = (row for row in MISTAKES if row.id == name)
    changed = row._replace(cells=[text.replace(old, new) for text in row.cells])
    assert changed.cells[cell] != row.cells[cell]
    assert set(forms(changed, cell)) != {""}


def test_changed_code_is_noticed():
    """N1.23 with the code of another loss."""
    (row,) = (row for row in FORMULAS if row.id == "N1.23")
    with changed_results("model.losses._poisson"):
        assert holds(row, [again(example) for example in examples(section(row))])
