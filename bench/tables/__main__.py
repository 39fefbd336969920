"""``python -m bench.tables --out FILE.md``: scores over five seeds, of recipes and of scikit-learn's pipeline."""

from __future__ import annotations

import statistics
import warnings
from pathlib import Path
from typing import Any

import click
import numpy as np
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.metrics import root_mean_squared_error
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from bench.tables.data import SOURCES, load
from fusedmlp import Predictor

RECIPES: dict[str, dict[str, Any]] = {
    "the defaults": {},
    "constant rate": {"schedule": "constant"},
    "rate 0.005, alpha 0.01": {"learning_rate": 0.005, "alpha": 0.01},
    "rate 0.0015, alpha 0.1": {"learning_rate": 0.0015, "alpha": 0.1},
    "sigmoid": {"activation": "sigmoid"},
    "early stopping": {"early_stopping": True},
}


def pipeline(classes: bool, seed: int) -> Any:
    """What a user of scikit-learn would write."""
    columns = make_column_transformer(
        (make_pipeline(SimpleImputer(), StandardScaler()), make_column_selector(dtype_include=np.number)),
        (
            make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder(handle_unknown="ignore")),
            make_column_selector(dtype_exclude=np.number),
        ),
    )
    return make_pipeline(
        columns, (MLPClassifier if classes else MLPRegressor)(hidden_layer_sizes=(64,), random_state=seed)
    )


def scores(name: str, seed: int, recipes: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Accuracy, or RMSE, of a quarter of the rows, by recipe; "scikit-learn" is the pipeline."""
    frame, target = load(name), SOURCES[name].target
    classes = (
        frame[target].dtype.kind not in "f"
        and frame[target].nunique() <= 20
        and frame[target].nunique() < len(frame) / 2
    )
    stratify = frame[target] if classes and frame[target].value_counts().min() > 1 else None
    train, test = train_test_split(frame, test_size=0.25, random_state=seed, stratify=stratify)
    results = {}
    for recipe, fitting in recipes.items():
        predictor = Predictor.train(
            train, target, random_state=seed, loss=None if classes else "squared_error", **fitting
        )
        results[recipe] = predictor.evaluate(test)["accuracy" if classes else "rmse"]
    X, y = train.drop(columns=target), train[target].to_numpy()
    center, scale = (0.0, 1.0) if classes else (y.mean(), y.std())
    model = pipeline(classes, seed).fit(X, y if classes else (y - center) / scale)
    predicted = model.predict(test.drop(columns=target))
    truth = test[target].to_numpy()
    if classes:
        results["scikit-learn"] = float((predicted == truth).mean())
    else:
        results["scikit-learn"] = float(root_mean_squared_error(truth, predicted * scale + center))
    return results


@click.command()
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--table", "names", multiple=True, type=click.Choice(list(SOURCES)))
@click.option("--seeds", default=5, type=click.IntRange(1))
def main(out: Path, names: tuple[str, ...], seeds: int) -> None:
    """Write a table of means over the seeds."""
    warnings.simplefilter("ignore")
    titles = [*RECIPES, "scikit-learn"]
    lines = [f"| table | rows | score | {' | '.join(titles)} |", f"|---|--:|---|{'--:|' * len(titles)}"]
    for name in names or SOURCES:
        runs = [scores(name, seed, RECIPES) for seed in range(seeds)]
        means = [statistics.mean(run[title] for run in runs) for title in titles]
        score = "accuracy" if max(means) <= 1 else "RMSE"
        shown = " | ".join(f"{mean:.4f}" if score == "accuracy" else f"{mean:.4g}" for mean in means)
        lines.append(f"| {name} | {len(load(name)):,} | {score} | {shown} |")
        click.echo(lines[-1])
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
