"""``fusedmlp search``."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import click

from fusedmlp.cli.experiment import choose_backends, prepare, read_data, train_all
from fusedmlp.cli.folds import Folds, Trial
from fusedmlp.cli.output import Output
from fusedmlp.cli.ranks import quiet_unless_first
from fusedmlp.cli.report import SCORES, print_table, shown_setting
from fusedmlp.cli.settings import Settings
from fusedmlp.cli.train import train
from fusedmlp.data.messages import counted

HELP = """Find the settings that predict a table best, by cross-validation.

\b
fusedmlp search digits --grid hidden=32,64,128 --grid learning-rate=1e-3,3e-3
fusedmlp search houses.csv --grid hidden=64,64-32 --out best.safetensors
fusedmlp search digits --grid hidden=32,64 --grid dropout=0,0.2 --halving

Every combination of the values is a candidate, trained once for every fold on the other folds. All of them are trained
at once, with the preprocessing of each fold's own training rows. The table shows the mean score of the held-out folds
and its standard deviation, the best candidate first. --out trains the best candidate on all rows and writes its model.

--halving trains all candidates for a part of their epochs, keeps the better half, goes on with those, and so on; the
last ones are trained to their end. The table and the picture have each candidate's last score. Candidates that learn
slowly at first may be lost by that.

A layer is a number, several are joined by hyphens: hidden=64,128-64 is one layer of 64, or 128 and 64.

Under mpiexec (mpiexec -n 8 fusedmlp search ...) each process trains some of the networks, and all train the best
candidate on all rows together.
"""
GRID = (
    "hidden", "activation", "optimizer", "learning-rate", "schedule", "epochs", "batch-size", "alpha", "clip-norm",
    "dropout",
)  # fmt: skip
"""What may be searched over: options of ``train``."""
_NOT_SHARED = {
    "data", "test_data", "test_target", "test_fraction", "all_backends", "metrics", "folds", "members", "out", "plot",
}  # fmt: skip
_WITHOUT: dict[str, Any] = {
    "test_data": None, "test_target": None, "test_fraction": 0.0, "test_fraction_is_default": False,
    "all_backends": False, "metrics": None, "checkpoint": None, "checkpoint_every": "1",
}  # fmt: skip
_OPTIONS = {parameter.name: parameter for parameter in train.params}


class Grid(click.ParamType):
    """A parameter and its values: "alpha=0,0.1" is ("alpha", (0.0, 0.1))."""

    name = "grid"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, tuple[Any, ...]]:
        """Parse the text of the option."""
        if isinstance(value, tuple):
            return value
        name, equals, texts = value.partition("=")
        if name not in GRID or not equals or not texts:
            self.fail(f"{value!r} is no NAME=VALUE,VALUE,... with a NAME of {', '.join(GRID)}", param, ctx)
        option = _OPTIONS[name.replace("-", "_")]
        parts = [text.replace("-", ",") if name == "hidden" else text for text in texts.split(",")]
        values = tuple(option.type.convert(part, option, ctx) for part in parts)
        if len(set(values)) < len(values):
            self.fail(f"{value!r} has a value twice", param, ctx)
        return name, values


@click.command(help=HELP)
@click.argument("data")
@click.option(
    "--grid",
    type=Grid(),
    multiple=True,
    required=True,
    metavar="NAME=VALUE,...",
    help=f"Values to try of an option; may be repeated. NAME is one of {', '.join(GRID)}.",
)
@click.option("--folds", type=click.IntRange(2), default=5, show_default=True, help="Parts to hold out in turn.")
@click.option("--halving", is_flag=True, help="Train long only what is better after a part of the epochs.")
@click.option("--out", metavar="FILE", help="Train the best candidate on all rows, and write the model (safetensors).")
@click.option("--plot", metavar="FILE", help="Draw the score against each parameter; a map for two (.png, .svg, .pdf).")
def search(data: str, grid: Sequence[tuple[str, tuple[Any, ...]]], folds: int, halving: bool, **options: Any) -> None:
    """Search, print the table and write the files."""
    names = [name for name, _ in grid]
    if len(set(names)) < len(names):
        raise click.UsageError(f"--grid: {max(names, key=names.count)} comes twice")
    base = Settings(data=data, **(_WITHOUT | options))
    candidates = [
        dataclasses.replace(base, **{name.replace("-", "_"): value for name, value in zip(names, values, strict=True)})
        for values in itertools.product(*(values for _, values in grid))
    ]
    with_model = base.out is not None
    if quiet_unless_first():
        for candidate in candidates:
            candidate.check()
    else:
        base = dataclasses.replace(base, out=None, plot=None)
    chosen, backends, _ = choose_backends(base)
    table = read_data(base)
    parts = Folds(base, table, folds)
    output = Output()
    with output.kept():
        trainings = len(candidates) * folds
        click.echo(f"data:    {table.source}: {counted(len(table), 'row')} in {folds} folds")
        click.echo(f"search:  {counted(len(candidates), 'candidate')}, {trainings} trainings on {chosen}")
        click.echo()
    trials = [parts.trial(candidate) for candidate in candidates]
    shares = list(_train(parts, trials, halving))
    order = sorted(range(len(trials)), key=lambda n: (-shares[n], *_rank(trials[n])))
    best = trials[order[0]]
    if best.errors:
        raise ValueError(f"every candidate diverged: {best.errors[0]}")
    if with_model:
        settings = dataclasses.replace(best.settings, plot=None)
        model = train_all(settings, prepare(settings, table), backends)[0].predictor
        if base.out is not None:
            model.save(base.out)
    if base.plot is not None:
        from fusedmlp.cli.plots import save_figure
        from fusedmlp.cli.search_plots import plot_search

        save_figure(plot_search(grid, trials, score_of(best), table.source), base.plot)
    with output.kept():
        _print(names, [trials[n] for n in order], [shares[n] for n in order])
        for what, path in (("model of the best, trained on all rows", base.out), ("scores", base.plot)):
            if path is not None:
                click.echo(f"{what}: {path}")
    output.close()


search.params += [parameter for parameter in train.params if parameter.name not in _NOT_SHARED]


def _train(parts: Folds, trials: list[Trial], halving: bool) -> Iterator[float]:
    """Train all; the share of its epochs that each candidate has had."""
    shares = dict.fromkeys(range(len(trials)), 0.0)
    left = list(range(len(trials)))
    rounds = 1 + (math.ceil(math.log2(len(trials))) if halving and len(trials) > 1 else 0)
    for step in range(rounds):
        share = 2.0 ** (step + 1 - rounds)
        parts.train([trials[n] for n in left], share)
        for n in left:
            shares[n] = share
        left = sorted(left, key=lambda n: _rank(trials[n]))[: -(-len(left) // 2)]
    return iter(shares.values())


def score_of(trial: Trial) -> str:
    """The score that candidates are ranked by: the first that there is of accuracy, deviance and R²."""
    return next(name for name in ("accuracy", "deviance", "r2") if name in trial.scores[0])


def _rank(trial: Trial) -> tuple[float, float]:
    """Smaller is better: by the score, then by the loss."""
    if trial.errors:
        return math.inf, math.inf
    name = score_of(trial)
    score = trial.mean(name)
    return (score if name == "deviance" else -score), trial.mean("loss")


def _print(names: Sequence[str], trials: Sequence[Trial], shares: Sequence[float]) -> None:
    """Print the candidates, a row each."""
    with_share = min(shares) < 1
    scored = next(trial for trial in trials if not trial.errors)
    shown = [name for name in SCORES if name in scored.scores[0]]
    titles = ["", *names, *(["epochs"] if with_share else []), "held-out loss"]
    titles += [f"held-out {SCORES[name].title}" for name in shown]
    rows = []
    for place, (trial, share) in enumerate(zip(trials, shares, strict=True), start=1):
        row = [str(place), *(shown_setting(getattr(trial.settings, name.replace("-", "_"))) for name in names)]
        if with_share:
            row.append(str(max(1, round(share * trial.settings.epochs))))
        if trial.errors:
            row += ["diverged", *("" for _ in shown)]
        else:
            row.append(f"{trial.mean('loss'):.4g} ± {trial.spread('loss'):.2g}")
            row += [f"{SCORES[name].form(trial.mean(name))} ± {trial.spread(name):.2g}" for name in shown]
        rows.append([*row, f"{trial.seconds:.2f}"])
    print_table([*titles, "seconds"], rows, left=range(1, 1 + len(names)))
