"""``fusedmlp train --members``: an ensemble, whose networks are trained at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from fusedmlp.backends.selection import instance_of
from fusedmlp.cli.experiment import Prepared, choose_backends, prepare
from fusedmlp.cli.output import Output
from fusedmlp.cli.report import SCORES, print_table
from fusedmlp.cli.settings import Settings
from fusedmlp.data.messages import counted
from fusedmlp.data.predictor import Predictor
from fusedmlp.distributed.launched import communicator
from fusedmlp.many import fit_many
from fusedmlp.training.history import History


def train_members(settings: Settings, count: int, describe: Any) -> None:
    """Train an ensemble, print the scores of its members and its own, and write it.

    Parameters
    ----------
    settings : Settings
    count : int
    describe : callable
        Prints how the data were understood.
    """
    chosen, _, _ = choose_backends(settings)
    data = prepare(settings)
    output = Output()
    with output.kept():
        describe(settings, data)
    sizes = data.features.n_outputs, data.encoder.n_outputs
    networks = [settings.make_network(*sizes, data.loss, instance_of(chosen), number) for number in range(count)]
    fitting = settings.fitting(data.encoder)
    fitting["dropout"] = [fitting["dropout"]] * count  # a list of rates might be taken for one per network
    histories = fit_many(networks, data.train.X, data.train.Y, **fitting, verbose="long", comm=communicator())
    diverged = [history.error for history in histories if history.error is not None]
    if diverged:
        raise ValueError(f"{counted(len(diverged), 'member')} of {count} diverged: {diverged[0]}")
    ensemble = Predictor(networks[0], data.features, data.encoder, networks[1:])
    if settings.out is not None:
        ensemble.save(settings.out)
    with output.kept():
        _print(data, ensemble, histories)
        if settings.out is not None:
            click.echo(f"model of {counted(count, 'member')}: {settings.out}")
    output.close()


def _print(data: Prepared, ensemble: Predictor, histories: Sequence[History]) -> None:
    """Print a row per member and one for the ensemble."""
    rows, titles = [], ["member", "epochs", "training loss"]
    alone = [Predictor(net, data.features, data.encoder) for net in ensemble.members]
    scores = []
    if data.held_out is not None:
        scores = [predictor.scores(data.held_out.X, data.held_out.target) for predictor in (*alone, ensemble)]
    shown = [name for name in SCORES if scores and name in scores[0]]
    if scores:
        titles += ["held-out loss", *(f"held-out {SCORES[name].title}" for name in shown)]
    losses = [predictor.scores(data.train.X, data.train.target)["loss"] for predictor in (*alone, ensemble)]
    names = [*(str(number) for number in range(1, len(losses))), "ensemble"]
    for number, (name, loss) in enumerate(zip(names, losses, strict=True)):
        history = histories[number] if number < len(histories) else None
        row = [name, "" if history is None else str(history.epochs), f"{loss:.4g}"]
        if scores:
            row += [f"{scores[number]['loss']:.4g}", *(SCORES[key].form(scores[number][key]) for key in shown)]
        seconds = sum(sum(each.seconds) for each in (histories if history is None else [history]))
        rows.append([*row, f"{seconds:.2f}"])
    print_table([*titles, "seconds"], rows)
