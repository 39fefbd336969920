"""Compile what the tests need, in many processes: ``python -m bench.peers.warm_up --processes 16``.

A test that draws its shapes would else compile dozens of kernels one after the other. Small networks of every kind are
run here instead, each by one of the processes. CuPy keeps what NVRTC makes in files, which all processes share.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import NamedTuple

import click
import numpy as np

from fusedmlp import Network, get_backend
from fusedmlp.model.activations import HIDDEN_ACTIVATIONS
from fusedmlp.model.losses import LOSSES

INPUTS, UNITS = (10, 30, 60, 120), (20, 200, 600)
"""Sizes at which kernels for narrow networks differ: inputs of a thread, units of a block, blocks of a cluster."""
OUTPUTS = (1, 3, 9)
LAYOUTS = (((7, 33), 37), ((8, 64), 64))
"""Hidden layers and samples whose matrices can be read 16 bytes at a time (the second), or not."""
DTYPES = ("float32", "float64")


class Item(NamedTuple):
    """A network and the number of samples it is run on."""

    layer_sizes: tuple[int, ...]
    m: int
    dtype: str
    activation: str = "sigmoid"
    loss: str = "binary_cross_entropy"
    precision: str = "strict"


def items() -> Iterator[Item]:
    """Those that compile longest come first."""
    kinds = (("float32", "medium"), ("float32", "high"), ("float64", "strict"), ("float32", "strict"))
    for n_in, n, n_out, (dtype, precision) in itertools.product(INPUTS, UNITS, OUTPUTS[:2], kinds):
        yield Item((n_in, n, n_out), 64, dtype, precision=precision)
    for n_out, activation, dtype, (hidden, m) in itertools.product(OUTPUTS, HIDDEN_ACTIVATIONS, DTYPES, LAYOUTS):
        yield Item((5, *hidden, n_out), m, dtype, activation)
    for loss, dtype in itertools.product(LOSSES, DTYPES):
        yield Item((5, 6, 3), 37, dtype, loss=loss)


def run(backend: str, item: Item) -> None:
    """A forward pass, gradients and some steps of training."""
    net = Network(
        list(item.layer_sizes),
        item.activation,
        item.loss,
        dtype=item.dtype,
        backend=get_backend(backend),
        random_state=0,
        precision=item.precision,
    )
    rng = np.random.default_rng(0)
    X = rng.normal(size=(item.layer_sizes[0], item.m))
    Y = np.eye(item.layer_sizes[-1])[rng.integers(item.layer_sizes[-1], size=item.m)].T
    net.forward(X)
    net.loss(X, Y)
    net.loss_and_gradients(X, Y, np.ones(item.m))
    net.fit(X, Y, epochs=1, batch_size=16, learning_rate=1e-4)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--backend", default="cupy", help="Backend of the package.")
@click.option("--processes", type=click.IntRange(1), default=1, help="How many run side by side.")
def main(backend: str, processes: int) -> None:
    """Run small networks of every kind, so that their kernels are compiled."""
    wanted = list(items())
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        done = sum(1 for _ in pool.map(partial(run, backend), wanted))
    click.echo(f"covered {done} of {len(wanted)} networks")


if __name__ == "__main__":
    sys.exit(main())
