"""What is known of a column of texts after some of its rows: evidence that grows piece by piece."""

from __future__ import annotations

from typing import Any

from fusedmlp.data.columns.dates import LOOKED_AT
from fusedmlp.data.columns.numbers import Evidence, are_codes, evidence, has_point, no_evidence

MOST_DIFFERENT = 10_000
"""So many different texts of a column are kept; of a column with more it is only known that there are more."""


class Texts:
    """The evidence of a column of texts, by all of its values so far.

    Parameters
    ----------
    pl : module
        polars.
    name : str
        The column.
    are_categories : bool
        Whether that is settled. Then its different texts are counted even if all look like numbers.

    Attributes
    ----------
    rows, values : int
        All rows so far, and those that have a value.
    head : polars.Series
        The first values.
    plain, whole, truth : bool
        Whether all values are numbers as programs write them, whole numbers, or truth values.
    code : str or None
        The first text of digits that is no number, such as "007".
    point_or_comma : bool
        Whether a text has one.
    marks : Evidence
        What is before fractions and between thousands. Only of a column that is not plain is all of it known.
    settles_comma : str or None
        The first text with a comma before three digits.
    different : polars.DataFrame or None
        The different texts in the order of their first rows: "text", "count" and "row". None: they were not counted
        from the first row on, or are too many.
    """

    def __init__(self, pl: Any, name: str, are_categories: bool = False) -> None:
        self._pl, self.name, self._are_categories = pl, name, are_categories
        self.rows = self.values = 0
        self.head = pl.Series(name, [], dtype=pl.String)
        self.plain = self.whole = self.truth = True
        self.code: str | None = None
        self.point_or_comma = False
        self.marks: Evidence = no_evidence()
        self.settles_comma: str | None = None
        self.different: Any = None

    def add(self, column: Any, first_row: int) -> None:
        """Take the next rows into account.

        Parameters
        ----------
        column : polars.Series
            Texts, or categories; null where a value is missing.
        first_row : int
            The number of the first of these rows, from 0.
        """
        column = column.cast(self._pl.String)
        values = len(column) - column.null_count()
        self.rows += len(column)
        if not values:
            return
        if len(self.head) < LOOKED_AT:
            self.head = self.head.append(column.drop_nulls().head(LOOKED_AT - len(self.head)))
        numbers = column.cast(self._pl.Float64, strict=False)
        counted = None
        if numbers.null_count() == column.null_count():
            self._add_numbers(column)
        else:
            counted = different_texts(self._pl, column, first_row)
            self._add_others(counted["text"])
        is_first = self.values == 0
        self.values += values
        if (is_first and self._is_counted) or self.different is not None:
            self.count(different_texts(self._pl, column, first_row) if counted is None else counted, is_first)

    def count(self, different: Any, anew: bool = False) -> None:
        """Count more texts, as `different_texts` gives them; `anew`: they are the first."""
        if not anew and self.different is None:
            return
        self.different = different if anew else merged(self._pl, self.different, different)
        if len(self.different) > MOST_DIFFERENT:
            self.different = None

    @property
    def _is_counted(self) -> bool:
        return self._are_categories or not self.plain or self.code is not None

    def _add_numbers(self, column: Any) -> None:
        """Texts that all are plain numbers. What is known already is not looked for again: most columns are such."""
        self.truth = False
        if self.whole:
            self.whole = column.cast(self._pl.Int64, strict=False).null_count() == column.null_count()
        if not self.point_or_comma:
            self.point_or_comma = bool(column.str.contains(".", literal=True).any())
        if self.point_or_comma and not self.marks.point and has_point(column):
            self.marks = self.marks._replace(point=1)
        if not self.point_or_comma and self.code is None:
            self._look_for_codes(column)

    def _add_others(self, texts: Any) -> None:
        """Different texts, some of which are no plain numbers."""
        self.plain = self.whole = False
        self.truth = self.truth and bool(texts.str.to_lowercase().is_in(["true", "false"]).all())
        self.point_or_comma = self.point_or_comma or bool(texts.str.contains(r"[.,]").any())
        self.marks = Evidence(*(a + b for a, b in zip(self.marks, evidence(texts), strict=True)))
        if self.code is None:
            self._look_for_codes(texts)
        if self.settles_comma is None:
            commas = texts.filter(texts.str.contains(r"\d,\d{3}"))
            self.settles_comma = commas[0] if len(commas) else None

    def _look_for_codes(self, texts: Any) -> None:
        codes = are_codes(texts)
        if codes.any():
            self.code = texts.filter(codes)[0]


def different_texts(pl: Any, column: Any, first_row: int) -> Any:
    """The different texts of a column with how often, and in which row first, each comes; in the order of these rows.

    Parameters
    ----------
    pl : module
        polars.
    column : polars.Series
        Texts, or null.
    first_row : int
        The number of the first row.
    """
    rows = pl.int_range(first_row, first_row + len(column), eager=True)
    frame = pl.DataFrame({"text": column, "row": rows}).drop_nulls("text").group_by("text", maintain_order=True)
    return frame.agg(pl.len().cast(pl.Int64).alias("count"), pl.col("row").first())


def merged(pl: Any, first: Any, second: Any) -> Any:
    """Two tables of different texts as one; the rows of the second come after those of the first."""
    both = pl.concat([first, second]).group_by("text", maintain_order=True)
    return both.agg(pl.col("count").sum(), pl.col("row").first())
