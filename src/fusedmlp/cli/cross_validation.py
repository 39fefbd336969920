"""``fusedmlp train --folds``: scores of parts that are held out in turn, and a model of all rows."""

from __future__ import annotations

import dataclasses

import click

from fusedmlp.cli.experiment import choose_backends, prepare, read_data, train_all
from fusedmlp.cli.folds import Folds, Trial
from fusedmlp.cli.output import Output
from fusedmlp.cli.report import SCORES, print_table
from fusedmlp.cli.settings import Settings
from fusedmlp.data.messages import counted


def cross_validate(settings: Settings, folds: int, with_model: bool) -> None:
    """Train once for every fold, print the scores, and write the model of all rows.

    Parameters
    ----------
    settings : Settings
    folds : int
    with_model : bool
        Whether a model of all rows is wanted; rank 0 has its path.
    """
    _, backends, _ = choose_backends(settings)
    table = read_data(settings)
    parts = Folds(settings, table, folds)
    trial = parts.trial(settings)
    output = Output()
    with output.kept():
        layers = "-".join(map(str, trial.networks[0].architecture.layer_sizes))
        click.echo(f"data:    {table.source}: {counted(len(table), 'row')} in {folds} folds")
        for note in table.notes:
            click.echo(f"         {note}")
        click.echo(f"network: {layers}, {settings.activation}, {parts.loss}, {settings.dtype}")
        click.echo()
    parts.train([trial])
    if trial.errors:
        raise ValueError(f"a training diverged: {trial.errors[0]}")
    if with_model:
        whole = dataclasses.replace(settings, test_fraction=0.0, test_fraction_is_default=False)
        model = train_all(whole, prepare(whole, table), backends)[0].predictor
        if settings.out is not None:
            model.save(settings.out)
    with output.kept():
        _print(trial)
        if settings.out is not None:
            click.echo(f"model of {backends[0]}, trained on all rows: {settings.out}")
    output.close()


def _print(trial: Trial) -> None:
    """Print the scores of every fold, their means and their standard deviations."""
    shown = [name for name in SCORES if name in trial.scores[0]]
    titles = ["fold", "epochs", "held-out loss", *(f"held-out {SCORES[name].title}" for name in shown), "seconds"]
    rows = []
    for number, (scores, state) in enumerate(zip(trial.scores, trial.states, strict=True), start=1):
        cells = [f"{scores['loss']:.4g}", *(SCORES[name].form(scores[name]) for name in shown)]
        rows.append([str(number), str(state.history.epochs), *cells, f"{sum(state.history.seconds):.2f}"])
    means = [f"{trial.mean('loss'):.4g}", *(SCORES[name].form(trial.mean(name)) for name in shown)]
    spreads = [f"{trial.spread(name):.2g}" for name in ("loss", *shown)]
    rows.append(["mean", "", *means, f"{trial.seconds:.2f}"])
    rows.append(["±", "", *spreads, ""])
    print_table(titles, rows)
