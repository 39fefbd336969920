"""Numbers as people write them: decimal commas, thousands separators, percent and currency signs."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

Decimal = Literal[".", ","]

_SIGNS = r"[$€£¥₹%\s\u00a0\u202f]+"
_SPACES = r"[ \u00a0\u202f'’]"
# Patterns of a text without currency and percent signs.
_COMMA_GROUPS = r"^[+-]?\d{1,3}(,\d{3})+(\.\d*)?$"
_COMMA_DECIMAL = r"^[+-]?(\d+|\d{1,3}([.\u00a0\u202f ]\d{3})+)?,\d+$"
_POINT_GROUPS = r"^[+-]?\d{1,3}(\.\d{3}){2,}$"
_POINT = r"^[+-]?\d*\.\d*$"
_EITHER = r"^[+-]?\d{1,3},\d{3}$"
_CODE = r"^0\d+$|^[+-]?\d{19,}$"


class Evidence(NamedTuple):
    """How many different texts of a column can only be read in one way.

    Attributes
    ----------
    decimal_comma, grouping_comma : int
        Texts whose commas can only be decimal ("5,1"), or can only separate thousands ("1,234,567", "1,234.5").
    either : int
        Texts whose comma can be both ("1,234").
    point : int
        Numbers with a decimal point.
    """

    decimal_comma: int
    grouping_comma: int
    either: int
    point: int


def no_evidence() -> Evidence:
    """The evidence of no text."""
    return Evidence(0, 0, 0, 0)


def has_point(texts: Any) -> bool:
    """Whether there is a number with a decimal point, among texts that are numbers as programs write them."""
    return bool(texts.str.contains(_POINT).any())


def evidence(texts: Any) -> Evidence:
    """The evidence of a polars series of texts; missing values do not count."""
    bare = without_signs(texts)
    matches = {
        name: bare.str.contains(pattern)
        for name, pattern in (
            ("comma", f"({_COMMA_DECIMAL})|({_POINT_GROUPS})"),
            ("groups", _COMMA_GROUPS),
            ("either", _EITHER),
            ("point", _POINT),
        )
    }
    either = matches["either"]
    return Evidence(
        int((matches["comma"] & ~either).sum()),
        int((matches["groups"] & ~either).sum()),
        int(either.sum()),
        int((matches["point"] & ~bare.str.contains(_POINT_GROUPS)).sum()),
    )


def are_codes(texts: Any) -> Any:
    """Which texts are digits that are no number: with leading zeros ("007"), or 19 digits and more."""
    return texts.str.contains(_CODE)


def without_signs(texts: Any) -> Any:
    """Texts without currency and percent signs at their ends; only where a digit is beside them."""
    return (
        texts.str.replace(rf"^([+-]?){_SIGNS}([+-]?[\d.,])", "$1$2")
        .str.replace(rf"(\d[.,]?){_SIGNS}$", "$1")
        .str.strip_chars()
    )


def parsed(pl: Any, texts: Any, decimal: Decimal) -> Any:
    """Texts as whole numbers, if all are, else as float64; null where a text is no number.

    Parameters
    ----------
    pl : module
        polars.
    texts : polars.Series
    decimal : {".", ","}
        The other one of these, spaces and apostrophes separate thousands.
    """
    plain = texts.cast(pl.Float64, strict=False)
    if decimal == "." and plain.null_count() == texts.null_count():
        whole = texts.cast(pl.Int64, strict=False)
        return whole if whole.null_count() == texts.null_count() else plain
    return as_written(pl, texts, decimal)


def as_written(pl: Any, texts: Any, decimal: Decimal) -> Any:
    """As `parsed` reads a column that has other texts than numbers as programs write them; float64."""
    bare = without_signs(texts)
    group = "," if decimal == "." else r"\."
    point = r"\." if decimal == "." else ","
    grouped = bare.str.contains(rf"^[+-]?\d{{1,3}}(({group}\d{{3}})+|({_SPACES}\d{{3}})+)({point}\d*)?$")
    simple = bare.str.contains(rf"^[+-]?(\d+{point}?\d*|{point}\d+)([eE][+-]?\d+)?$")
    joined = pl.when(grouped).then(bare.str.replace_all(rf"{group}|{_SPACES}", "")).when(simple).then(bare)
    written = pl.select(joined).to_series()
    if decimal == ",":
        written = written.str.replace(",", ".", literal=True)
    return written.cast(pl.Float64, strict=False)
