"""``fusedmlp search`` and ``fusedmlp train --folds``: the trainings, the tables, the files."""

from __future__ import annotations

import re

import numpy as np
import pytest
from click.testing import CliRunner

from fusedmlp import Network, Predictor
from fusedmlp.cli import folds
from fusedmlp.cli.commands import cli
from fusedmlp.data.features import FeatureEncoder
from fusedmlp.data.reading import read_table


def table_of(output):
    """The rows of the printed table."""
    lines = output.splitlines()
    rule = next(i for i, line in enumerate(lines) if set(line) == {"─"})
    rows = [re.split(r"\s{2,}", line.strip()) for line in lines[rule + 1 :]]
    return [row for row in rows if len(row) > 2]


def test_the_best_candidate_comes_first_and_is_trained_on_all_rows(run, tmp_path):
    grid = ("--grid", "hidden=16,8-8", "--grid", "learning-rate=1e-9,0.01")
    path = tmp_path / "best.safetensors"
    rows = table_of(run("search", "iris", *grid, "--epochs", "20", "--folds", "3", "--out", str(path)))
    assert [row[0] for row in rows] == ["1", "2", "3", "4"]
    assert {row[2] for row in rows[:2]} == {"0.01"}
    accuracies = [float(row[4].split(" ± ")[0]) for row in rows]
    assert accuracies == sorted(accuracies, reverse=True)
    predictor = Predictor.load(path)
    assert "-".join(map(str, predictor.network.architecture.layer_sizes[1:-1])) == rows[0][1]
    assert predictor.evaluate("iris")["accuracy"] > 0.9


def test_a_fold_is_the_training_on_the_other_rows(monkeypatch, run):
    """Each fold's scores are those of a network that is trained by itself, with its own rows' preprocessing."""
    kept = []
    train = folds.Folds.train
    monkeypatch.setattr(folds.Folds, "train", lambda self, trials: (kept.append((self, trials)), train(self, trials)))
    rows = table_of(run("train", "wine", "--folds", "4", "--epochs", "6", "--hidden", "8"))
    ((parts, (trial,)),) = kept
    table = read_table("wine")
    assert [row[0] for row in rows] == ["1", "2", "3", "4", "mean", "±"]
    for number, fold in enumerate(parts._folds):
        features = FeatureEncoder.fit(table, fold.train)
        X, Y = features.transform(table, fold.train).T, fold.encoder.encode(table.target[fold.train])
        net = Network([len(X), 8, len(Y)], "relu", parts.loss, random_state=number)
        settings = trial.settings
        net.fit(X, Y, settings.make_optimizer(parts.encoder), 6, 32, schedule="cosine", alpha=0.1)
        scores = Predictor(net, features, fold.encoder).scores(fold.X[:, fold.test], table.target[fold.test])
        assert scores["loss"] == pytest.approx(trial.scores[number]["loss"], rel=1e-4)
        assert f"{trial.scores[number]['accuracy']:.4f}" == rows[number][3]
    assert sorted(np.concatenate([fold.test for fold in parts._folds]).tolist()) == list(range(len(table)))
    assert float(rows[4][3 - 1]) == pytest.approx(trial.mean("accuracy"), abs=1e-4)


def test_halving_ends_as_a_whole_training_does(run):
    grid = ("--grid", "hidden=4,16", "--grid", "alpha=0,0.1", "--epochs", "16", "--folds", "3")
    whole = table_of(run("search", "iris", *grid))
    halved = table_of(run("search", "iris", *grid, "--halving"))
    assert [row[3] for row in halved] == ["16", "8", "4", "4"]
    same = next(row for row in whole if row[1:3] == halved[0][1:3])
    assert same[3:5] == halved[0][4:6]


def test_folds_whose_categories_differ(run, tmp_path):
    lines = ["kind,x,target"] + [f"{'rare' if i == 3 else 'ab'[i % 2]},{i % 7},{i % 7 + i % 2}.5" for i in range(60)]
    path = tmp_path / "rows.csv"
    path.write_text("\n".join(lines))
    rows = table_of(run("train", str(path), "--folds", "3", "--epochs", "3"))
    assert len(rows) == 5


def test_an_ensemble(run, tmp_path):
    path = tmp_path / "ensemble.safetensors"
    rows = table_of(run("train", "iris", "--members", "3", "--epochs", "10", "--hidden", "8", "--out", str(path)))
    assert [row[0] for row in rows] == ["1", "2", "3", "ensemble"]
    ensemble = Predictor.load(path)
    assert len(ensemble.members) == 3
    alone = [Predictor(net, ensemble.features, ensemble.target) for net in ensemble.members]
    mean = np.mean([predictor.predict_proba("iris") for predictor in alone], axis=0)
    np.testing.assert_allclose(ensemble.predict_proba("iris"), mean, rtol=1e-5)
    assert "members:      3" in run("info", str(path))
    assert len(run("predict", str(path), "iris").splitlines()) == 151


def test_pictures(run, tmp_path):
    for grid in (["--grid", "alpha=0,1"], ["--grid", "alpha=0,1", "--grid", "hidden=none,4"]):
        path = tmp_path / "search.png"
        run("search", "diabetes", *grid, "--epochs", "2", "--folds", "2", "--plot", str(path))
        assert path.read_bytes()[:4] == b"\x89PNG"
        path.unlink()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "iris"], "Missing option '--grid'"),
        (["search", "iris", "--grid", "hiden=3"], "'hiden=3' is no NAME=VALUE"),
        (["search", "iris", "--grid", "alpha="], "'alpha=' is no NAME=VALUE"),
        (["search", "iris", "--grid", "alpha=1,1"], "'alpha=1,1' has a value twice"),
        (["search", "iris", "--grid", "alpha=-1"], "-1.0 is not in the range"),
        (["search", "iris", "--grid", "alpha=1", "--grid", "alpha=2"], "--grid: alpha comes twice"),
        (["search", "iris", "--grid", "alpha=1", "--folds", "999"], "999 folds of 150 rows"),
        (["search", "iris", "--grid", "hidden=4", "--dropout", "0,0.5,0.5"], "--dropout"),
        (["train", "iris", "--members", "3", "--plot", "x.png"], "--members and --plot exclude each other"),
        (["train", "iris", "--members", "3", "--folds", "3"], "--folds and --members exclude each other"),
        (["train", "iris", "--members", "2", "--learning-rate", "1e30"], "2 members of 2 diverged"),
        (["train", "iris", "--folds", "1"], "1 is not in the range"),
        (["train", "iris", "--folds", "3", "--test-fraction", "0.5"], "--folds and --test-fraction exclude each other"),
        (["train", "iris", "--folds", "3", "--all-backends"], "--folds and --all-backends exclude each other"),
        (["train", "iris", "--folds", "3", "--learning-rate", "1e30"], "a training diverged"),
    ],
)
def test_bad_input(arguments, message):
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code != 0
    assert message in result.output + str(result.exception)
