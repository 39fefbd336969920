"""Pictures of a search: the score against every parameter, and a map of two."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fusedmlp.cli.folds import Trial
from fusedmlp.cli.plots import new_figure
from fusedmlp.cli.report import SCORES, shown_setting
from fusedmlp.data.messages import counted

Parameters = Sequence[tuple[str, tuple[Any, ...]]]


def plot_search(grid: Parameters, trials: Sequence[Trial], score: str, source: str) -> Any:
    """A panel per parameter, and for exactly two parameters a map of their combinations.

    Parameters
    ----------
    grid : sequence of (name, values)
    trials : sequence of Trial
    score : str
        The name of the score.
    source : str
        What the data are called.
    """
    panels = len(grid) + (len(grid) == 2)
    figure = new_figure(width=4.2 * panels, height=3.6)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for panel, (name, values) in zip(axes, grid, strict=False):
        _draw_parameter(panel, name, values, trials, score)
    if len(grid) == 2:
        _draw_map(figure, axes[-1], grid, trials, score)
    figure.suptitle(f"{Path(source).name}: mean held-out {SCORES[score].title} of {counted(len(trials), 'candidate')}")
    return figure


def _values(trials: Sequence[Trial], name: str) -> list[Any]:
    return [getattr(trial.settings, name.replace("-", "_")) for trial in trials]


def _draw_parameter(panel: Any, name: str, values: Sequence[Any], trials: Sequence[Trial], score: str) -> None:
    """Every candidate as a point with the spread of its folds; the best of each value as a line."""
    places = {value: place for place, value in enumerate(values)}
    worse = score == "deviance"
    best: dict[Any, float] = {}
    drawn = dict.fromkeys(values, 0)
    alike = max(1, len(trials) // len(values))  # they stand side by side
    for value, trial in zip(_values(trials, name), trials, strict=True):
        if trial.errors:
            continue
        mean = trial.mean(score)
        place = places[value] + 0.3 * ((drawn[value] + 0.5) / alike - 0.5)
        drawn[value] += 1
        panel.errorbar(place, mean, trial.spread(score), fmt="o", color="C0", alpha=0.5, capsize=3)
        best[value] = (min if worse else max)(best.get(value, mean), mean)
    known = [value for value in values if value in best]
    panel.plot([places[value] for value in known], [best[value] for value in known], color="C1", label="best")
    panel.set_xlim(-0.4, len(values) - 0.6)
    panel.set_xticks(range(len(values)), [shown_setting(value) for value in values])
    panel.set_xlabel(name)
    panel.set_ylabel(f"{SCORES[score].title}, ± standard deviation")
    panel.legend(frameon=False)


def _draw_map(figure: Any, panel: Any, grid: Parameters, trials: Sequence[Trial], score: str) -> None:
    (first, rows), (second, columns) = grid
    table = np.full((len(rows), len(columns)), np.nan)
    pairs = zip(_values(trials, first), _values(trials, second), strict=True)
    for (row, column), trial in zip(pairs, trials, strict=True):
        table[rows.index(row), columns.index(column)] = trial.mean(score)
    image = panel.imshow(table, cmap="viridis_r" if score == "deviance" else "viridis", aspect="auto")
    middle = np.nanmin(table) + 0.6 * (np.nanmax(table) - np.nanmin(table))
    for i, j in itertools.product(range(len(rows)), range(len(columns))):
        if np.isfinite(table[i, j]):
            dark = (table[i, j] < middle) != (score == "deviance")
            text = SCORES[score].form(table[i, j])
            panel.text(j, i, text, ha="center", va="center", color="white" if dark else "black")
    panel.set_xticks(range(len(columns)), [shown_setting(value) for value in columns])
    panel.set_yticks(range(len(rows)), [shown_setting(value) for value in rows])
    panel.set_xlabel(second)
    panel.set_ylabel(first)
    figure.colorbar(image, ax=panel)
