"""docs/derivation.md is complete and consistent, and every equation on it is evaluated."""

from __future__ import annotations

import re

import pytest
from latex import Parser
from matplotlib.mathtext import MathTextParser
from page import CONDITION, FORMULAS, MISTAKES, PAGE, PROSE, ROWS, mathematics

LABELS = [row for row in ROWS if row.series in ("S1", "S2")]
NOT_EVALUATED = {
    "S1, S2": "slips of writing: names, headings, separators; there is nothing to compute",
    "M2.3": "a sentence; test_formulas.py tests it on its own",
}


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
    assert {row.cells[4] for row in MISTAKES} == {"mistake", "symbol"}


def test_every_equation_of_the_page_is_evaluated():
    """Rows whose equations stand in a cell that is not evaluated, or which have none, are named in NOT_EVALUATED."""
    evaluated = {text for row in FORMULAS for text in row.formulas()} | {text for _, text in PROSE}
    evaluated |= {row.formulas(cell)[0] for row in MISTAKES if row.id not in NOT_EVALUATED for cell in (1, 3)}
    left_out = {text for row in LABELS for cell in row.cells for text in mathematics(cell)}
    for text in formulas_in_latex():
        assert "=" not in text or text in evaluated | left_out or CONDITION.fullmatch(text), text
    assert all(any("=" in text for text in row.formulas()) for row in FORMULAS if row.id not in SHAPES_ALONE)


SHAPES_ALONE = ["N1.5", "N1.7", "N1.15", "N1.17", *(f"N2.{k}" for k in range(1, 9))]
"""Rows that define a symbol: what is evaluated is its shape."""


def test_formulas_and_mistakes_point_at_each_other():
    from_formulas = {(row.id, name) for row in FORMULAS for name in re.findall(r"M\d\.\d+", " ".join(row.cells))}
    assert from_formulas == {(row.cells[0], row.id) for row in MISTAKES}


def test_every_id_that_is_mentioned_exists():
    assert set(re.findall(r"\b(?:[NMS][12]|P)\.\d+\b", PAGE)) == {row.id for row in ROWS}


def formulas_in_latex() -> list[str]:
    displayed = re.findall(r"\$\$(.+?)\$\$", PAGE)
    return displayed + mathematics(re.sub(r"\$\$.+?\$\$", "", PAGE))


def test_mathematics_is_well_formed():
    """Formulas hold nothing that Markdown takes away (escaped signs, bars, opening underscores) and can be typeset."""
    parser = MathTextParser("agg")
    for formula in formulas_in_latex():
        assert not re.search(r"\\[^a-zA-Z]|\||(?<![a-zA-Z0-9}])_|\*|^\s|\s$", formula), formula
        try:
            Parser(formula, note=True).sides()
        except (SyntaxError, ValueError, IndexError):  # not of the kind that is evaluated
            parser.parse(f"${formula}$")


def test_dollar_signs_come_in_pairs():
    for line in PAGE.splitlines():
        assert line.count("$") % 2 == 0, line
