"""``fusedmlp info``."""

from __future__ import annotations

import platform

import click

from fusedmlp import __version__
from fusedmlp.backends.cupy import kernel_sources
from fusedmlp.backends.libraries import library_versions
from fusedmlp.backends.selection import get_backend, registry, resolve_precision, specification, unavailable_reason
from fusedmlp.data.messages import counted
from fusedmlp.data.predictor import Predictor
from fusedmlp.data.targets import ClassEncoder
from fusedmlp.files.model_files import load_model

HELP = """Show the backends of this machine, or the content of a MODEL file.

\b
fusedmlp info
FUSEDMLP_BACKEND=cupy fusedmlp info
fusedmlp info model.safetensors

For every backend it prints the device, threads, libraries and versions, or why the backend cannot run here and the pip
command that helps. Then come the hashes of the CUDA kernels, the backend that a command would use now, and what decides
it. The exit status is 2 if the backend that is asked for cannot run, or if a setting of a backend is wrong.
"""

PACKAGES = ("numpy", "scipy", "numba", "scikit-learn", "click", "rich", "polars", "matplotlib")


@click.command(help=HELP)
@click.argument("model", required=False)
def info(model: str | None) -> None:
    """Describe the machine, or a model file."""
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
