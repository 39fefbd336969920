"""``fusedmlp info``."""

from __future__ import annotations

import platform
from typing import Any

import click
from click.core import ParameterSource

from fusedmlp import __version__
from fusedmlp.backends.base import OTHER_NAMES, PRECISIONS
from fusedmlp.backends.cupy import kernel_sources
from fusedmlp.backends.cupy.cards import CARDS
from fusedmlp.backends.libraries import library_versions
from fusedmlp.backends.selection import get_backend, registry, resolve_precision, specification, unavailable_reason
from fusedmlp.cli.gpu_paths import SAMPLES, describe_paths
from fusedmlp.cli.options import LayerSizes
from fusedmlp.data.messages import counted
from fusedmlp.data.predictor import Predictor
from fusedmlp.data.targets import ClassEncoder
from fusedmlp.files.model_files import load_model
from fusedmlp.model.activations import HIDDEN_ACTIVATIONS
from fusedmlp.model.architecture import DTYPES, Architecture

HELP = """Show the backends of this machine, the content of a MODEL file, or the steps of a network on a GPU.

\b
fusedmlp info
FUSEDMLP_BACKEND=cupy fusedmlp info
fusedmlp info model.safetensors
fusedmlp info --shape 784-128-10 --batch-size 128 --card a100

For every backend it prints the device, threads, libraries and versions, or why the backend cannot run here and the pip
command that helps. Then come the hashes of the CUDA kernels, the backend that a command would use now, and what decides
it. The exit status is 2 if the backend that is asked for cannot run, or if a setting of a backend is wrong.

With --shape it prints which path the network takes on a GPU and why, and the predicted bytes, flops and time of a
training step on each path. That needs no GPU.
"""

PACKAGES = ("numpy", "scipy", "numba", "scikit-learn", "click", "rich", "polars", "matplotlib")


OF_A_SHAPE = ("activation", "loss", "bias", "dtype", "precision", "samples", "batch_size", "card")
"""Options that say something only with --shape."""


@click.command(help=HELP)
@click.argument("model", required=False)
@click.option(
    "--shape", type=LayerSizes(), metavar="N1-N2-...-NL", help="Sizes of the layers: predict a training step."
)
@click.option(
    "--activation",
    type=click.Choice(list(HIDDEN_ACTIVATIONS)),
    default="sigmoid",
    show_default=True,
    metavar="NAME",
    help="Of the hidden layers, as for train.",
)
@click.option("--loss", default="binary_cross_entropy", show_default=True, metavar="NAME", help="As for train.")
@click.option("--bias/--no-bias", default=True, show_default=True, help="With or without biases.")
@click.option("--dtype", type=click.Choice(DTYPES), default="float32", show_default=True, help="Type of all numbers.")
@click.option(
    "--precision",
    type=click.Choice([*PRECISIONS, *OTHER_NAMES]),
    help="Of float32 products. [default: all that differ on the card]",
)
@click.option("--samples", type=click.IntRange(1), default=SAMPLES, show_default=True, help="In the training set.")
@click.option("--batch-size", type=click.IntRange(1), help="Samples of a step. [default: all]")
@click.option("--card", type=click.Choice(list(CARDS)), help="The GPU. [default: the one here, else h200]")
@click.pass_context
def info(context: click.Context, model: str | None, **options: Any) -> None:
    """Describe the machine, a model file, or the steps of a network on a GPU."""
    shape = options.pop("shape")
    if shape is not None and model is not None:
        raise click.UsageError("expected MODEL or --shape, not both")
    if shape is not None:
        described = (options.pop(name) for name in OF_A_SHAPE[:4])
        describe_paths(Architecture(shape, *described), **options)
        return
    for name in OF_A_SHAPE:
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            raise click.UsageError(f"--{name.replace('_', '-')} describes a network: it needs --shape")
    if model is not None:
        _describe_model(model)
        return
    click.echo(f"fusedmlp {__version__}, Python {platform.python_version()}, {platform.platform()}")
    click.echo(library_versions(PACKAGES))
    click.echo("\nBackends")
    mistakes: list[Exception] = []
    for name in registry():
        mistakes += _describe_backend(name)
    click.echo("\nKernels (SHA-256)")
    for file, digest in kernel_sources.hashes().items():
        click.echo(f"  {file:<24} {digest}")
    asked_for, source = specification()
    click.echo(f"\nAsked for: {asked_for} ({source})")
    click.echo(f"Chosen:    {get_backend().name}")
    if mistakes:  # the first is also the error of the command
        raise mistakes[0]


def _describe_backend(name: str) -> list[Exception]:
    """Print whether a backend is available, and its description or the setting that is wrong; return the errors."""
    described: dict[str, str] = {}
    mistakes: list[Exception] = []
    try:
        reason = unavailable_reason(name)
        if reason is None:
            described = get_backend(name).at_precision(resolve_precision()).describe()
    except (ValueError, RuntimeError) as error:
        reason, mistakes = f"a setting is wrong: {error}", [error]
    click.echo(f"  {name}: {'available' if reason is None else f'not available: {reason}'}")
    for key, value in described.items():
        click.echo(f"    {key + ':':<10} {value}")
    return mistakes


def _describe_model(path: str) -> None:
    file = load_model(path)
    architecture = file.parameters.architecture
    click.echo(f"layers:       {'-'.join(map(str, architecture.layer_sizes))}")
    click.echo(f"activation:   {architecture.hidden_activation} (hidden layers)")
    click.echo(f"loss:         {architecture.loss}")
    click.echo(f"biases:       {'yes' if architecture.bias else 'no'}")
    click.echo(f"parameters:   {architecture.n_parameters:,} of {architecture.dtype}")
    if "members" in file.extra:
        click.echo(f"members:      {file.extra['members']}, whose outputs are averaged")
    if "features" not in file.extra:
        click.echo("preprocessing: none in this file")
        return
    predictor = Predictor.from_model_file(file, path, "numpy")
    schema, target = predictor.features.schema, predictor.target
    click.echo(f"numbers:      {_listed(schema.numeric) if schema.named else counted(len(schema.numeric), 'column')}")
    for name, categories in zip(schema.text, predictor.features.categories, strict=True):
        click.echo(f"categories:   {name}: {_listed(categories)}")
    click.echo(f"target:       {schema.target or 'in a file of its own'}")
    if isinstance(target, ClassEncoder):
        click.echo(f"classes:      {_listed(target.classes)}")


def _listed(names: tuple[object, ...], most: int = 12) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more
