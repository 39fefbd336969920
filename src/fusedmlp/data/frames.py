"""CSV and Parquet files, read with polars: what each column holds, and which values are missing."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fusedmlp.data.columns import dates
from fusedmlp.data.columns.finding import Choices, File, find_rules
from fusedmlp.data.columns.rules import ColumnRule, applied, first_refused
from fusedmlp.data.csv_files import first_line_of, read_csv, row_index
from fusedmlp.data.messages import counted, errors_alone, missing_values, shortened
from fusedmlp.data.table import Schema, Table, as_target, check_columns
from fusedmlp.extras import require

MOST_CATEGORIES = 1000


def read_frame_table(path: Path, target: str | None = None, **options: Any) -> Table:
    """Read a table from a CSV or Parquet file.

    Parameters
    ----------
    path : Path
        Read as Parquet if the name ends in .parquet or .pq, else as CSV.
    target : str, optional
        The target's column. By default the one of the schema, else "target", if there is such a column.
    **options
        As `frame_table` has them.
    """
    pl = require("polars", "data", "reading CSV and Parquet")
    notes: list[str] = []
    with open(path, "rb"):
        pass  # raises an OSError that names the file, if the file cannot be read; polars' own error is less clear
    if path.suffix.lower() in (".parquet", ".pq"):
        return frame_table(_read_parquet(pl, path), str(path), target, **options)
    frame, separator = read_csv(pl, path, notes)
    return frame_table(frame, str(path), target, separator=separator, notes=notes, **options)


def frame_table(
    frame: Any,
    source: str,
    target: str | None = None,
    *,
    separator: str = "",
    notes: list[str] | None = None,
    choices: Choices = Choices(),  # noqa: B008 - it cannot be changed
    schema: Schema | None = None,
    target_required: bool = True,
    require_every_target: bool = False,
) -> Table:
    """Make a table of a polars frame.

    Parameters
    ----------
    frame : polars.DataFrame
    source : str
        For messages.
    target : str, optional
        As `read_frame_table`.
    separator : str
        What separated the fields of a file of text; then the texts of a column decide what it holds. "": columns have
        the types that they have.
    notes : list of str, optional
        What is to be said already.
    choices : Choices
        What the user has settled.
    schema : Schema, optional
        The schema of a trained model: only its columns are converted, by its rules.
    target_required, require_every_target
        As in `reading.read_table`.
    """
    pl = require("polars", "data", "reading CSV and Parquet")
    if choices.missing:
        frame = frame.with_columns(pl.col(pl.String).replace(dict.fromkeys(choices.missing)))
    given = (choices.drop, choices.numeric, choices.categorical)
    drop, numeric, categorical = (named(names, frame.columns) for names in given)
    choices = replace(choices, drop=drop, numeric=numeric, categorical=categorical)
    reader = _Reader(pl, source, frame, separator, notes or [], choices, schema)
    return reader.table(target, target_required, require_every_target)


def _read_parquet(pl: Any, path: Path) -> Any:
    try:
        with errors_alone():
            return pl.read_parquet(path, glob=False)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, MemoryError) as error:
        raise ValueError(f"{path}: not a Parquet file, or a damaged one: {first_line_of(error)}") from None


class _Reader:
    """Makes a table of a polars frame."""

    def __init__(
        self,
        pl: Any,
        source: str,
        frame: Any,
        separator: str,
        notes: list[str],
        choices: Choices,
        schema: Schema | None,
    ) -> None:
        if len(frame) == 0:
            raise ValueError(f"{source}: expected at least one row of data; got none")
        self._pl, self._source, self._frame, self._schema = pl, source, frame, schema
        self._columns = frame.columns
        for argument, names in (("numeric", choices.numeric), ("categorical", choices.categorical)):
            self._check_known(argument, names)
        self._is_text = bool(separator)
        self._file = File(source, separator, choices, notes=notes)

    def table(self, target: str | None, target_required: bool, require_every_target: bool) -> Table:
        """The table; see `read_frame_table`."""
        pl, schema = self._pl, self._schema
        name = target or (schema.target if schema is not None else None) or "target"
        has_target = name in self._columns
        if not has_target and (target_required or target is not None):
            raise ValueError(
                f"target: {self._source}: expected the name of the target's column; "
                f"{f'there is no {target!r}' if target else 'none was given'}; the columns are "
                f"{listed(self._columns)}"
            )
        if schema is not None:
            check_columns(schema, [c for c in self._columns if c != name], self._source)
        dropped = self._file.choices.drop
        self._check_known("drop", dropped)
        reads_target = has_target and (target_required or target is not None)
        as_text = schema is not None and schema.text_target
        y = self._target(name, as_text, require_every_target) if reads_target else None
        wanted = [c for c in self._wanted(dropped) if c != name]
        rules = self._rules(wanted)
        columns = {c: self._values(self._frame[c], rules.get(c)) for c in wanted}
        if schema is None:
            self._check_categories(columns)
        text_target = y.dtype == object if y is not None else as_text
        return _table(pl, self._source, columns, rules, name, y, len(self._frame), text_target, self._file.notes)

    def _wanted(self, dropped: Collection[str]) -> list[str]:
        if self._schema is not None:
            names = self._schema.columns
            return [c for c in self._columns if c in names and c not in dropped]
        index = row_index(self._pl, self._frame)
        if index is None or index[0] in dropped:
            return [c for c in self._columns if c not in dropped]
        name, what = index
        self._file.notes.append(f"column {name!r} {what}: left out")
        return [c for c in self._columns if c not in dropped and c != name]

    def _rules(self, wanted: Sequence[str]) -> dict[str, ColumnRule]:
        """The rules of the columns of text; without a rule, a column of text is one of categories."""
        pl, schema = self._pl, self._schema
        if schema is not None:
            return {c: schema.rule_of(c) for c in wanted}
        texts = [self._frame[c] for c in wanted if self._frame[c].dtype == pl.String]
        choices, found = self._file.choices, texts
        if not self._is_text:  # where columns have types, a text that could be a number is meant to be none
            found = [t for t in texts if t.name in choices.numeric or not _all_numbers(pl, t)]
        rules = {t.name: ColumnRule("category") for t in texts} | find_rules(pl, found, self._file)
        if choices.missing:
            rules = {c: replace(rule, missing=(*rule.missing, *choices.missing)) for c, rule in rules.items()}
        for c in wanted:
            if self._frame[c].dtype in (pl.Date, pl.Datetime):
                rules[c] = ColumnRule("date", has_time=dates.has_times(_local(pl, self._frame[c])))
        return rules

    def _values(self, column: Any, rule: ColumnRule | None) -> Any:
        """A column as integers, floats, truth values, dates or text."""
        pl, dtype = self._pl, column.dtype
        as_text = rule is not None and rule.kind == "category"
        if column.name in self._file.choices.categorical:
            as_text = True
        if dtype == pl.String:
            return column if rule is None else self._converted(column, rule)
        if dtype in (pl.Categorical, pl.Enum):
            return column.cast(pl.String)
        if dtype == pl.Null:
            return column.cast(pl.String if as_text else pl.Float64)
        if dtype in (pl.Date, pl.Datetime):
            return _local(pl, column)
        if dtype == pl.Duration:
            return column.dt.total_microseconds().cast(pl.Float64) / 1e6
        if dtype == pl.Time:
            return column.cast(pl.Int64).cast(pl.Float64) / 1e9
        if dtype.is_decimal():
            column = column.cast(pl.Float64)
        elif not (dtype.is_numeric() or dtype == pl.Boolean):
            raise ValueError(
                f"{self._source}: column {column.name!r} is of type {dtype}; expected numbers, booleans, text or dates "
                f"(drop it, or convert it to one of these)"
            )
        return column.cast(pl.String) if as_text else column

    def _converted(self, column: Any, rule: ColumnRule) -> Any:
        values = applied(self._pl, column, rule)
        refused = first_refused(column, values, rule)
        if refused is None:
            return values
        row, text = refused
        expected = f"{rule.kind}s" if rule.kind != "date" else f"dates, {dates.words_of(rule.date_format)}"
        raise ValueError(
            f"{self._source}: column {column.name!r}: expected {expected}, as in training; got {shortened(text)!r} "
            f"in row {row} (counted from 0)"
        )

    def _check_categories(self, columns: dict[str, Any]) -> None:
        """Refuse text columns whose values hardly repeat, such as names, identifiers and free text."""
        bad = {}
        for name, column in columns.items():
            if column.dtype == self._pl.String and name not in self._file.choices.categorical:
                n, m = column.n_unique(), len(column)
                if n > MOST_CATEGORIES or (n > 20 and n > m / 2):
                    example = shortened(column.drop_nulls()[0])
                    bad[name] = f"{name!r} has {n} different values in {m} rows, such as {example!r}"
        if bad:
            raise ValueError(
                f"{self._source}: expected columns of numbers or of categories that repeat; {'; '.join(bad.values())} "
                f"(drop what is no category: {' '.join(f'--drop {shell_word(name)}' for name in bad)})"
            )

    def _target(self, name: str, as_text: bool, require_every_target: bool) -> np.ndarray:
        """The target. Rows without one are left out of the frame, or are an error."""
        pl, column, source = self._pl, self._frame[name], f"{self._source}: column {name!r}"
        rule = ColumnRule("category") if as_text else None
        if column.dtype == pl.String and self._is_text and not as_text:
            rule = find_rules(pl, [column], self._file)[name]
        column = self._values(column, rule)
        if column.dtype == pl.Datetime:
            raise ValueError(f"target: {source}: expected numbers or classes; got dates, such as {column[0]}")
        if column.has_nulls():
            missing = missing_values(column.null_count(), int(column.is_null().arg_true()[0]))
            if require_every_target or column.null_count() == len(column):
                raise ValueError(f"target: {source}: {missing}; expected a target in every row")
            self._file.notes.append(f"{counted(column.null_count(), 'row')} without {name!r}: left out")
            self._frame = self._frame.filter(column.is_not_null())
            column = column.drop_nulls()
        # Without nulls, polars returns text as an array of str objects, and numbers and booleans in their own types.
        return as_target(column.to_numpy(), source)

    def _check_known(self, argument: str, names: Collection[str]) -> None:
        unknown = [name for name in names if name not in self._frame.columns]
        if unknown:
            raise ValueError(
                f"{argument}: {self._source} has no column {', '.join(unknown)}; the columns are "
                f"{listed(self._frame.columns)}"
            )


def _local(pl: Any, column: Any) -> Any:
    """Dates, or times of any unit and zone, as datetimes of their own clock."""
    return (column.dt.replace_time_zone(None) if column.dtype == pl.Datetime else column).cast(pl.Datetime("us"))


def _all_numbers(pl: Any, texts: Any) -> bool:
    return bool(texts.cast(pl.Float64, strict=False).null_count() == texts.null_count())


def named(given: Collection[str], columns: Collection[str]) -> list[str]:
    """The names that are given: a text that names a column, or a list of names separated by commas."""
    names = []
    for text in given:
        names += [text] if text in columns else [part.strip() for part in text.split(",") if part.strip()]
    return names


def listed(names: Sequence[str], most: int = 50) -> str:
    """Names, separated by commas, the first of many."""
    return ", ".join(shortened(name) for name in names[:most]) + (", ..." if len(names) > most else "")


def shell_word(name: str) -> str:
    """A name as a word of a command line."""
    return shlex.quote(shortened(name))


def _table(
    pl: Any,
    source: str,
    columns: dict[str, Any],
    rules: dict[str, ColumnRule],
    target: str,
    y: np.ndarray | None,
    m: int,
    text_target: bool,
    notes: list[str],
) -> Table:
    text = tuple(name for name, column in columns.items() if column.dtype == pl.String)
    names: list[str] = []
    numbers: list[np.ndarray] = []
    for name, column in columns.items():
        if name in text:
            continue
        if column.dtype == pl.Datetime:
            names += dates.part_names(name, rules[name].has_time)
            numbers.append(dates.parts(pl, column, rules[name].has_time))
        else:
            names.append(name)
            numbers.append(column.cast(pl.Float64).fill_null(float("nan")).to_numpy()[:, None])
    words = np.empty((m, len(text)), dtype=object)
    for i, name in enumerate(text):
        words[:, i] = columns[name].to_list()
    schema = Schema(tuple(names), text, target=target, text_target=text_target, rules=tuple(rules.items()))
    return Table(source, schema, np.hstack(numbers) if numbers else np.empty((m, 0)), words, y, notes=tuple(notes))
