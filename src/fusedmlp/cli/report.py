"""Tables on stdout."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

PIPE_WIDTH = 160
"""Characters of a line if stdout is not a terminal."""


@dataclass(frozen=True)
class Score:
    """The presentation of one of `Predictor.scores`.

    Attributes
    ----------
    title : str
    spec : str
        The format specification.
    """

    title: str
    spec: str

    def form(self, value: float) -> str:
        """Format the score."""
        return format(value, self.spec)


SCORES = {
    "accuracy": Score("accuracy", ".4f"),
    "r2": Score("R²", ".4f"),
    "rmse": Score("RMSE", ".4g"),
    "deviance": Score("mean Poisson deviance", ".4g"),
}


def shown_setting(value: object) -> str:
    """The value of a setting, as it is given in a grid: layers are joined by hyphens."""
    if isinstance(value, tuple):
        return "-".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _print_lines(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A line for every cell, where a row has no room."""
    width = max(map(len, titles))
    for row in rows:
        print(*(f"{title:<{width}}  {cell}" for title, cell in zip(titles, row, strict=True)), "", sep="\n")


def print_table(titles: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> None:
    """Print a table on stdout; the columns number `left` are aligned left, the others right. Only titles wrap.

    Where a row has no room on the terminal, its cells are lines.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    on_terminal = sys.stdout is not None and sys.stdout.isatty()  # a stdout that was closed is None
    console = Console(file=sys.stdout, width=None if on_terminal else PIPE_WIDTH, highlight=False)
    widths = [
        max(map(len, (*title.split(), *cells))) for title, cells in zip(titles, zip(*rows, strict=True), strict=True)
    ]
    if sum(widths) + len(widths) > console.width:
        _print_lines(titles, rows)
        return
    narrow = sum(widths) + 2 * len(widths) > console.width
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0 if narrow else 1, 0, 0), show_edge=False)
    for i, (title, width) in enumerate(zip(titles, widths, strict=True)):
        justify: Literal["left", "right"] = "left" if i in left else "right"
        table.add_column(Text(title), justify=justify, min_width=width, width=width if narrow else None)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)
