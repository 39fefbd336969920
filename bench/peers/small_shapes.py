"""Every kind of pass on small odd shapes, for compute-sanitizer: ``python -m bench.peers.small_shapes``.

Results are compared with float64 by numpy. On a GPU each array has an allocation of its own, so that an access beyond
its end is seen.
"""

from __future__ import annotations

import inspect
import itertools
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import click
import numpy as np

from fusedmlp import Network, get_backend
from fusedmlp.backends.cupy.cuda_tables import CUDA_ACTIVATIONS
from fusedmlp.model.activations import HIDDEN_ACTIVATIONS

OUTPUTS = {1: "binary_cross_entropy", 3: "categorical_cross_entropy", 7: "squared_error"}
HIDDEN, M = ((19,), (64,), (7, 33), (150,), (300,)), (1, 37, 301)  # the last two: units of one block, and of several
TOLERANCE = {"float32": 1e-4, "float64": 1e-11, "medium": 2e-2}


class Shape(NamedTuple):
    """A network, and how many samples."""

    hidden: tuple[int, ...]
    outputs: int
    activation: str
    dtype: str
    precision: str
    bias: bool
    m: int


def shapes(activations: Iterable[str] = HIDDEN_ACTIVATIONS) -> Iterator[Shape]:
    """Those with some activations; the ones that differ most come first."""
    precisions = [("float32", "strict"), ("float64", "strict")]
    if "precision" in inspect.signature(Network).parameters:
        precisions += [("float32", "high"), ("float32", "medium")]
    kinds = itertools.product(precisions, OUTPUTS, activations)
    for number, ((dtype, precision), outputs, activation) in enumerate(kinds):
        yield Shape(
            HIDDEN[number % len(HIDDEN)], outputs, activation, dtype, precision, number % 4 != 3, M[(number + 1) % 3]
        )


def run(shape: Shape, backend: Any) -> None:
    """A forward pass, gradients, and a few steps of training.

    Raises
    ------
    AssertionError
        A number is wrong.
    """
    sizes = [5, *shape.hidden, shape.outputs]
    arguments = (sizes, shape.activation, OUTPUTS[shape.outputs], shape.bias)
    extra = {"precision": shape.precision} if shape.precision != "strict" else {}
    net = Network(*arguments, shape.dtype, backend, 0, **extra)
    exact = Network(*arguments, "float64", "numpy", 0)
    exact.parameters.flat[...] = backend.to_numpy(net.parameters.flat)
    rng = np.random.default_rng(1)
    X = rng.normal(size=(5, shape.m)).astype(shape.dtype)
    labels = rng.integers(shape.outputs, size=shape.m) if shape.outputs > 1 else np.zeros(shape.m, int)
    Y = np.eye(shape.outputs)[labels].T if shape.outputs > 1 else rng.integers(0, 2, (1, shape.m)).astype(float)
    tolerance = TOLERANCE["medium" if shape.precision == "medium" else shape.dtype]
    _compare(net.forward(X), exact.forward(X), tolerance, f"A of {shape}")
    J, gradients = net.loss_and_gradients(X, Y)
    right, expected = exact.loss_and_gradients(X, Y)
    _compare(np.array(J), np.array(right), tolerance, f"J of {shape}")
    _compare(gradients.flat, expected.flat, tolerance, f"gradients of {shape}")
    losses = [
        n.fit(X, Y, "sgd", learning_rate=0.01, epochs=2, batch_size=16, random_state=2).loss for n in (net, exact)
    ]
    _compare(np.array(losses[0]), np.array(losses[1]), 10 * tolerance, f"losses of {shape}")
    net.fit(X, Y, "adam", epochs=1, batch_size=shape.m)
    assert np.isfinite(backend.to_numpy(net.parameters.flat)).all(), f"weights of {shape}"


def _compare(got: np.ndarray, expected: np.ndarray, tolerance: float, what: str) -> None:
    error = float(np.max(np.abs(got - expected)) / max(1e-3, float(np.max(np.abs(expected)))))
    assert error <= tolerance, f"{what}: error {error:.2g}, expected at most {tolerance:g}"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--backend", "name", default="cupy", help="Backend of the package.")
@click.option(
    "--seconds", type=click.FloatRange(0, min_open=True), default=3600.0, help="No new shape is begun after this time."
)
@click.option("--kernels", is_flag=True, help="Only activations that cupy has a kernel for: the others run composed.")
def main(name: str, seconds: float, kernels: bool) -> None:
    """Run every kind of pass on small odd shapes."""
    start, done = time.monotonic(), 0
    wanted = list(shapes(CUDA_ACTIVATIONS if kernels else HIDDEN_ACTIVATIONS))
    backend = get_backend(name)
    if name == "cupy":
        backend.xp.cuda.set_allocator(None)
    for shape in wanted:
        if done and time.monotonic() - start > seconds:
            break
        run(shape, backend)
        done += 1
    backend.synchronize()
    click.echo(f"covered {done} of {len(wanted)} shapes")


if __name__ == "__main__":
    sys.exit(main())
