"""Layout: which columns of a table are read, and how. Found once by a survey, or taken from a trained model."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fusedmlp.data.columns.finding import Choices, File, find_rules
from fusedmlp.data.columns.rules import ColumnRule
from fusedmlp.data.columns.texts import MOST_DIFFERENT
from fusedmlp.data.messages import counted, missing_values, shortened
from fusedmlp.data.pieces import Pieces
from fusedmlp.data.row_names import RowNames, row_name
from fusedmlp.data.survey import Survey
from fusedmlp.data.table import Schema, check_columns

MOST_CATEGORIES = 1000


@dataclass(frozen=True)
class Layout:
    """How the frames of a table become rows.

    Attributes
    ----------
    source : str
        For messages.
    columns : tuple of str
        Those that are read, besides the target.
    rules : dict of str to ColumnRule
        Of columns of text, or of dates.
    categorical : tuple of str
        Columns of categories, whatever their type.
    target : str
        The target's column.
    reads_target : bool
    target_rule : ColumnRule or None
    whole_target : bool
        Whether a target of texts is one of whole numbers.
    text_target : bool
        Whether the target is text though it is not read.
    rows : int
        Rows that are read; 0 where they were not counted.
    categories : dict of str to int
        How many different texts the columns of text have, and a target of text, where there was a survey.
    notes : tuple of str
        What was decided and is not obvious, a sentence each.
    row_names : RowNames
        What the rows that are read are called in messages.
    """

    source: str
    columns: tuple[str, ...]
    rules: dict[str, ColumnRule]
    target: str
    reads_target: bool
    categorical: tuple[str, ...] = ()
    target_rule: ColumnRule | None = None
    whole_target: bool = False
    text_target: bool = False
    rows: int = 0
    categories: dict[str, int] | None = None
    notes: tuple[str, ...] = ()
    row_names: RowNames = ()


def find_layout(
    pl: Any,
    pieces: Pieces,
    target: str | None = None,
    *,
    choices: Choices = Choices(),  # noqa: B008 - it cannot be changed
    schema: Schema | None = None,
    target_required: bool = True,
    require_every_target: bool = False,
) -> Layout:
    """Find out how a table is read.

    Parameters
    ----------
    pl : module
        polars.
    pieces : Pieces
    target : str, optional
        The target's column. By default the one of the schema, else "target", if there is such a column.
    choices : Choices
        What the user has settled.
    schema : Schema, optional
        The schema of a trained model: only its columns are read, by its rules.
    target_required, require_every_target
        As in `reading.read_table`.

    Raises
    ------
    ValueError
        The content is not a table with a target as described.
    """
    given = (choices.drop, choices.numeric, choices.categorical)
    drop, numeric, categorical = (named(names, pieces.columns) for names in given)
    choices = replace(choices, drop=drop, numeric=numeric, categorical=categorical)
    for argument, names in (("numeric", numeric), ("categorical", categorical)):
        _check_known(argument, names, pieces)
    name = target or (schema.target if schema is not None else None) or "target"
    has_target = name in pieces.columns
    if not has_target and (target_required or target is not None):
        raise ValueError(
            f"target: {pieces.source}: expected the name of the target's column; "
            f"{f'there is no {target!r}' if target else 'none was given'}; the columns are "
            f"{listed(pieces.columns)}"
        )
    if schema is not None:
        check_columns(schema, [c for c in pieces.columns if c != name], pieces.source)
    _check_known("drop", drop, pieces)
    reads_target = has_target and (target_required or target is not None)
    return _Search(pl, pieces, choices, name, reads_target, schema).layout(require_every_target)


def layout_of_model(pieces: Pieces, schema: Schema) -> Layout:
    """How a table is read for predictions of a trained model; not a value is looked at.

    Raises
    ------
    ValueError
        Columns of the model are missing.
    """
    target = schema.target or "target"
    check_columns(schema, [c for c in pieces.columns if c != target], pieces.source)
    columns = _columns_of_model(pieces.columns, schema)
    rules = {c: schema.rule_of(c) for c in columns}
    return Layout(pieces.source, tuple(columns), rules, target, False, text_target=schema.text_target)


class _Search:
    """Makes a survey of a table, and the layout of what it shows."""

    def __init__(
        self, pl: Any, pieces: Pieces, choices: Choices, target: str, reads_target: bool, schema: Schema | None
    ) -> None:
        self._pl, self._pieces, self._choices, self._schema = pl, pieces, choices, schema
        self._target, self._reads_target = target, reads_target
        self._file = File(pieces.source, pieces.separator, choices)

    def layout(self, require_every_target: bool) -> Layout:
        schema = self._schema
        as_text = schema is not None and schema.text_target
        survey = self._survey()
        if not survey.rows:
            raise ValueError(f"{self._pieces.source}: expected at least one row of data; got none")
        self._note_what_is_empty(survey)
        rule, texts = None, survey.target
        if texts is not None and as_text:
            rule = ColumnRule("category")
        elif texts is not None and self._pieces.separator:
            self._file.row_names = survey.row_names
            rule = find_rules(self._pl, [texts], self._file, survey.target_again)[self._target]
            if rule.missing:  # these rows have no target: what the other columns hold is said by the others
                survey = self._survey(rule.missing)
        self._check_target(survey, rule, require_every_target)
        columns = self._columns(survey)
        rules = self._rules(survey, columns)
        if schema is None:
            self._check_categories(survey, columns, rules)
        return Layout(
            source=self._pieces.source,
            columns=tuple(columns),
            rules=rules,
            target=self._target,
            reads_target=self._reads_target,
            categorical=tuple(self._choices.categorical),
            target_rule=rule,
            whole_target=texts is not None and texts.plain and texts.whole,
            text_target=as_text,
            rows=survey.kept,
            categories=self._categories(survey, columns, rule),
            notes=tuple(self._file.notes),
            row_names=survey.kept_names,
        )

    def _survey(self, no_target: Sequence[str] = ()) -> Survey:
        target = self._target if self._reads_target else None
        return Survey(self._pl, self._pieces, self._choices, target, no_target, features=self._schema is None)

    def _note_what_is_empty(self, survey: Survey) -> None:
        if survey.empty_rows:
            self._file.notes.append(f"{counted(survey.empty_rows, 'empty row')}: left out")
        if survey.valueless:
            self._file.notes.append(f"{counted(len(survey.valueless), 'column')} without a name or a value: left out")

    def _check_target(self, survey: Survey, rule: ColumnRule | None, require_every_target: bool) -> None:
        if not self._reads_target:
            return
        source = f"{self._pieces.source}: column {self._target!r}"
        if survey.is_date(self._target) or (rule is not None and rule.kind == "date"):
            example = "" if survey.target is None else f", such as {survey.target.head[0]}"
            raise ValueError(f"target: {source}: expected numbers or classes; got dates{example}")
        if survey.first_without_target is not None:
            without = survey.rows - survey.kept
            if require_every_target or not survey.kept:
                missing = missing_values(without, row_name(survey.row_names, survey.first_without_target))
                raise ValueError(f"target: {source}: {missing}; expected a target in every row")
            self._file.notes.append(f"{counted(without, 'row')} without {self._target!r}: left out")

    def _columns(self, survey: Survey) -> list[str]:
        """The columns to read."""
        dropped, columns = self._choices.drop, [c for c in survey.columns if c != self._target]
        if self._schema is not None:
            return _columns_of_model([c for c in columns if c not in dropped], self._schema)
        index = survey.row_index()
        if index is None or index[0] in dropped:
            return [c for c in columns if c not in dropped]
        name, what = index
        self._file.notes.append(f"column {name!r} {what}: left out")
        return [c for c in columns if c not in dropped and c != name]

    def _rules(self, survey: Survey, columns: Sequence[str]) -> dict[str, ColumnRule]:
        """The rules of the columns of text; without a rule, a column of text is one of categories."""
        pl, choices = self._pl, self._choices
        if self._schema is not None:
            return {c: self._schema.rule_of(c) for c in columns}
        texts = [survey.texts[c] for c in columns if survey.types[c] == pl.String]
        found = texts
        if not self._pieces.separator:  # where columns have types, a text that could be a number is meant to be none
            found = [t for t in texts if t.name in choices.numeric or not t.plain]
        rules = {t.name: ColumnRule("category") for t in texts}
        self._file.row_names = survey.kept_names
        rules |= find_rules(pl, found, self._file, survey.again)
        if choices.missing:
            rules = {c: replace(rule, missing=(*rule.missing, *choices.missing)) for c, rule in rules.items()}
        for c in columns:
            if survey.is_date(c):
                rules[c] = ColumnRule("date", has_time=survey.has_times(c))
        return rules

    def _categories(self, survey: Survey, columns: Sequence[str], rule: ColumnRule | None) -> dict[str, int]:
        """How many different texts there are in each column of text, and in a target that is one of categories."""
        found = {c: _different(survey, c) or MOST_DIFFERENT for c in columns if c in survey.texts}
        target = survey.target
        if target is not None and target.different is not None and rule is not None and rule.kind == "category":
            found[target.name] = len(target.different)
        return found

    def _check_categories(self, survey: Survey, columns: Sequence[str], rules: dict[str, ColumnRule]) -> None:
        """Refuse text columns whose values hardly repeat, such as names, identifiers and free text."""
        bad, m = {}, survey.kept
        for name in columns:
            rule = rules.get(name)
            is_text = name in survey.texts and (rule is None or rule.kind == "category")
            if not is_text or name in self._choices.categorical:
                continue
            n, texts = _different(survey, name), survey.texts[name]
            if n is None or n > MOST_CATEGORIES or (n > 20 and n > m / 2):
                many = f"more than {MOST_DIFFERENT}" if n is None else str(n)
                bad[name] = f"{name!r} has {many} different values in {m} rows, such as {shortened(texts.head[0])!r}"
        if bad:
            raise ValueError(
                f"{self._pieces.source}: expected columns of numbers or of categories that repeat; "
                f"{'; '.join(bad.values())} "
                f"(drop what is no category: {' '.join(f'--drop {shell_word(name)}' for name in bad)})"
            )


def _columns_of_model(columns: Sequence[str], schema: Schema) -> list[str]:
    """Those of the columns that a model was trained on, in the order that they had."""
    first_parts = {parts[0]: name for name, parts in schema.dates.items()}
    names = [first_parts.get(name, name) for name in (*schema.numeric, *schema.text)]
    places = {name: place for place, name in enumerate(names) if name in schema.columns}
    return sorted((c for c in columns if c in places), key=places.__getitem__)


def _different(survey: Survey, name: str) -> int | None:
    """How many different values a column of text has, a missing one included; None: more than are counted."""
    texts = survey.texts[name]
    if not texts.values:
        return 1
    return None if texts.different is None else len(texts.different) + (texts.values < texts.rows)


def _check_known(argument: str, names: Collection[str], pieces: Pieces) -> None:
    unknown = [name for name in names if name not in pieces.columns]
    if unknown:
        raise ValueError(
            f"{argument}: {pieces.source} has no column {', '.join(unknown)}; the columns are {listed(pieces.columns)}"
        )


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
