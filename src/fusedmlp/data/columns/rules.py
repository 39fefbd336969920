"""ColumnRule: how the texts of a column become values. Found once, in training, and kept with the model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from fusedmlp.data.columns.dates import as_dates
from fusedmlp.data.columns.numbers import Decimal, parsed

Kind = Literal["number", "truth value", "date", "category"]
KINDS = ("number", "truth value", "date", "category")


@dataclass(frozen=True)
class ColumnRule:
    """What a column holds.

    Attributes
    ----------
    kind : {"number", "truth value", "date", "category"}
    decimal : {".", ","}
        The decimal mark of a column of numbers.
    missing : tuple of str
        Texts that stand for a missing value in this column alone.
    date_format : str
        The format of a column of dates; "" where its values are dates already.
    has_time : bool
        Whether dates have times of day.
    """

    kind: Kind
    decimal: Decimal = "."
    missing: tuple[str, ...] = ()
    date_format: str = ""
    has_time: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.decimal not in (".", ","):
            raise ValueError(f"column: expected one of {', '.join(KINDS)}; got {self.kind!r}, {self.decimal!r}")

    def to_dict(self) -> dict[str, Any]:
        """The rule as JSON-ready data."""
        return asdict(self) | {"missing": list(self.missing)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ColumnRule:
        """Make a rule of what `to_dict` returned; ValueError, KeyError or TypeError for other data."""
        missing = tuple(data["missing"])
        if not all(isinstance(text, str) for text in (*missing, data["date_format"])):
            raise ValueError("column: expected texts")
        return cls(data["kind"], data["decimal"], missing, data["date_format"], bool(data["has_time"]))


def without_missing(texts: Any, rule: ColumnRule) -> Any:
    """Texts with null for those that stand for a missing value in the column."""
    return texts.replace(dict.fromkeys(rule.missing)) if rule.missing else texts


def applied(pl: Any, texts: Any, rule: ColumnRule) -> Any:
    """The values of a column of texts by its rule; null where a text has none."""
    texts = without_missing(texts, rule)
    if rule.kind == "number":
        return parsed(pl, texts, rule.decimal)
    if rule.kind == "date":
        return as_dates(pl, texts, rule.date_format)
    if rule.kind == "truth value":
        lower = texts.str.to_lowercase()
        return pl.select(pl.when(lower.is_in(["true", "false"])).then(lower == "true")).to_series()
    return texts


def first_refused(texts: Any, values: Any, rule: ColumnRule) -> tuple[int, str] | None:
    """(row, text) of the first text that is not missing and has no value; None, if all have one."""
    refused = values.is_null() & without_missing(texts, rule).is_not_null()
    if not refused.any():
        return None
    row = int(refused.arg_true()[0])
    return row, texts[row]
