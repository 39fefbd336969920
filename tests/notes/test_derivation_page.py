"""docs/derivation.md: what it says of the code and of the tests is so."""

from __future__ import annotations

import importlib
import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from matplotlib.mathtext import MathTextParser
from mistakes_first_note import FIRST_NOTE
from mistakes_second_note import SECOND_NOTE

import fusedmlp

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "derivation.md").read_text(encoding="utf-8")

TEST = re.compile(r"tests/notes/(test_\w+)\.py(?:::(test_\w+)(?:\[([\w.]+)\])?)?")
FORMULA_TESTS = {
    "test_first_note_forward": "test_forward",
    "test_first_note_gradients": "test_gradient",
    "test_logistic_regression": "test_logistic_regression",
    "test_recursion": "test_recursion",
    "test_second_note": "test_second_note",
    "test_project_formulas": "test_project",
}
"""The test of each module that is parametrised by its `formula` registry."""


class Row(NamedTuple):
    """A row of a table that starts with an id, and the test that the table stands under."""

    id: str
    cells: list[str]
    module: str
    function: str

    @property
    def series(self) -> str:
        return self.id.split(".")[0]


def rows() -> list[Row]:
    found, module, function = [], "", ""
    for line in PAGE.splitlines():
        if line.startswith("#"):
            module = function = ""
        if line.startswith("Test: "):
            module, function, _ = TEST.search(line).groups()
        if re.match(r"\| [NPMS]\d?\.\d+ \|", line):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            found.append(Row(cells[0], cells[1:], module, function))
    return found


ROWS = rows()
FORMULAS = [row for row in ROWS if row.series in ("N1", "N2", "P")]
MISTAKES = [row for row in ROWS if row.series in ("M1", "M2")]
LABELS = [row for row in ROWS if row.series in ("S1", "S2")]
CASES = [*FIRST_NOTE, *SECOND_NOTE]


@cache
def resolve(name: str) -> Any:
    """The object that a dotted name means: of the package's public names, or from one of its modules on."""
    first, *rest = name.split(".")
    if first in fusedmlp.__all__:
        found = getattr(fusedmlp, first)
    else:
        path = first
        while rest and (ROOT / "src" / "fusedmlp" / path.replace(".", "/")).is_dir():
            path += f".{rest.pop(0)}"
        found = importlib.import_module(f"fusedmlp.{path}")
    for attribute in rest:
        found = getattr(found, attribute)
    return found


def is_code(name: str) -> bool:
    """Whether a name in backticks is a dotted name of the package."""
    first = name.split(".")[0]
    here = ROOT / "src" / "fusedmlp"
    known = first in fusedmlp.__all__ or (here / f"{first}.py").exists() or (here / first).is_dir()
    return known and re.fullmatch(r"\w+(\.\w+)+", name) is not None


# Tables --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("series", ["N1", "N2", "P", "M1", "M2", "S1", "S2"])
def test_ids_are_in_order_and_without_gaps(series):
    ids = [row.id for row in ROWS if row.series == series]
    assert len(ids) > 5
    assert ids == [f"{series}.{number}" for number in range(1, len(ids) + 1)]


def test_rows_have_the_columns_of_their_table():
    assert {len(row.cells) for row in FORMULAS} == {3}
    assert {len(row.cells) for row in MISTAKES} == {6}
    assert {len(row.cells) for row in LABELS} == {3}
    assert all(cell for row in ROWS for cell in row.cells)


@pytest.mark.parametrize("module", FORMULA_TESTS)
def test_formulas_of_the_page_are_the_formulas_of_the_tests(module):
    """Every row has a formula in the test module named above its table, and every formula there has a row."""
    on_the_page = {row.id for row in FORMULAS if row.module == module}
    assert on_the_page == set(importlib.import_module(module).formula)
    assert {row.function for row in FORMULAS if row.module == module} == {FORMULA_TESTS[module]}


def test_every_formula_stands_under_its_test():
    assert {row.module for row in FORMULAS} == set(FORMULA_TESTS)


# References ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", FORMULAS, ids=lambda row: row.id)
def test_formula_names_code_that_exists(row):
    names = [name for name in re.findall(r"`([^`]+)`", row.cells[-1]) if "." in name]
    assert names
    for name in names:
        assert resolve(name) is not None


def test_every_dotted_name_on_the_page_exists():
    names = {name for name in re.findall(r"`([^`\n]+)`", PAGE) if is_code(name)}
    assert {"Network.trace", "reference.trace"} <= names
    for name in names:
        resolve(name)


def test_every_test_on_the_page_exists():
    references = TEST.findall(PAGE)
    assert len(references) > 10
    for module, function, parameter in references:
        assert (Path(__file__).parent / f"{module}.py").exists()
        loaded = importlib.import_module(module)
        if function:
            assert callable(getattr(loaded, function))
        if parameter:
            assert function == FORMULA_TESTS[module]
            assert parameter in loaded.formula


def test_stale_names_are_noticed():
    """What the tests above rest on."""
    for name in ("reference.no_such_function", "no_such_module.trace", "Network.no_such_method"):
        with pytest.raises((AttributeError, ImportError)):
            resolve(name)
    assert is_code("losses._poisson")
    assert is_code("reference.no_such_function")
    assert not is_code("np.sum")
    assert TEST.findall("`tests/notes/test_x.py::test_y[N1.2]`") == [("test_x", "test_y", "N1.2")]


# Mistakes ------------------------------------------------------------------------------------------------------------


def test_mistakes_of_the_page_are_the_mistakes_of_the_tests():
    assert [row.id for row in MISTAKES] == list(dict.fromkeys(case.id for case in CASES))
    function = ("test_mistakes", "test_printed_fails_and_corrected_holds")
    assert {(row.module, row.function) for row in MISTAKES} == {function}


@pytest.mark.parametrize("row", MISTAKES, ids=lambda row: row.id)
def test_mistake_fails_in_the_way_the_page_says(row):
    formula, _, _, _, kind, fails_by = row.cells
    cases = [case for case in CASES if case.id == row.id]
    assert {case.formula for case in cases} == {formula}
    assert ", ".join(sorted({way for case in cases for way in case.failures()})) == fails_by
    assert kind in ("mistake", "symbol")


def test_formulas_and_mistakes_point_at_each_other():
    from_formulas = {(row.id, name) for row in FORMULAS for name in re.findall(r"M\d\.\d+", " ".join(row.cells))}
    assert from_formulas == {(row.cells[0], row.id) for row in MISTAKES}


def test_every_id_that_is_mentioned_exists():
    mentioned = set(re.findall(r"\b(?:[NMS][12]|P)\.\d+\b", PAGE))
    assert mentioned == {row.id for row in ROWS}


# Mathematics ---------------------------------------------------------------------------------------------------------


def formulas_in_latex() -> list[str]:
    displayed = re.findall(r"\$\$(.+?)\$\$", PAGE)
    return displayed + re.findall(r"\$([^$\n]+)\$", re.sub(r"\$\$.+?\$\$", "", PAGE))


def test_mathematics_is_well_formed():
    """Every formula parses, and holds nothing that Markdown takes away: escaped signs, bars, opening underscores."""
    parser = MathTextParser("agg")
    formulas = formulas_in_latex()
    assert len(formulas) > 400
    for formula in formulas:
        assert not re.search(r"\\[^a-zA-Z]|\||(?<![a-zA-Z0-9])_|\*|^\s|\s$", formula), formula
        parser.parse(f"${formula}$")


def test_dollar_signs_come_in_pairs():
    for line in PAGE.splitlines():
        assert line.count("$") % 2 == 0, line
