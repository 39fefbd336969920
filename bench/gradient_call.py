"""``python -m bench.gradient_call``: a step called from Python, ``net.loss_and_gradients``, against jax's jitted one.

Both take 30-64-1 with m = 569 in float32, as an optimizer of the user's own would call them; in one process, in turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import click
import numpy as np

LAYERS, SAMPLES = (30, 64, 1), 569


def calls() -> dict[str, Callable[[], Any]]:
    """A call of each, on the same numbers.

    Raises
    ------
    AssertionError
        They give different losses.
    """
    import jax
    from jax import numpy as jnp

    from fusedmlp import Network

    rng = np.random.default_rng(0)
    X = rng.standard_normal((LAYERS[0], SAMPLES), np.float32)
    Y = (X[:1] > 0).astype(np.float32)
    net = Network(LAYERS, backend="numba-cpu", random_state=0)
    layers = [(jnp.asarray(W), jnp.asarray(b)) for W, b in zip(net.weights, net.biases, strict=True)]

    def loss(layers: Any, X: Any, Y: Any) -> Any:
        (W1, b1), (W2, b2) = layers
        Z2 = W2.T @ jax.nn.sigmoid(W1.T @ X + b1) + b2
        return (jax.nn.softplus(Z2) - Y * Z2).mean()

    step, on_jax = jax.jit(jax.value_and_grad(loss)), (jnp.asarray(X), jnp.asarray(Y))
    np.testing.assert_allclose(net.loss_and_gradients(X, Y)[0], float(step(layers, *on_jax)[0]), rtol=1e-5)
    return {
        "fusedmlp": lambda: net.loss_and_gradients(X, Y),
        "jax": lambda: jax.block_until_ready(step(layers, *on_jax)),
    }


def microseconds(call: Callable[[], Any], repeats: int) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats * 1e6


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--turns", default=15, type=click.IntRange(1), help="15.")
@click.option("--repeats", default=200, type=click.IntRange(1), help="Calls in a turn; 200.")
def main(turns: int, repeats: int) -> None:
    """Print medians over turns, and how many times as fast ours is."""
    both = calls()
    for call in both.values():
        microseconds(call, repeats)
    rounds = [{name: microseconds(call, repeats) for name, call in both.items()} for _ in range(turns)]
    times = {name: float(np.median([each[name] for each in rounds])) for name in both}
    for name, time_of_call in times.items():
        print(f"{name}: {time_of_call:.1f} µs")
    print(f"{np.median([each['jax'] / each['fusedmlp'] for each in rounds]):.1f} times as fast as jax")


if __name__ == "__main__":
    main()
