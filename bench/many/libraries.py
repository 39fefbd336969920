"""The libraries: each trains the networks of a case and says how long a step took, and what came out."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from bench.many.cases import CASES, Case

Result = tuple[float, np.ndarray]
"""(seconds for a step of one network, loss of the last epoch of each network that was trained)."""
LARGEST_APART = 0.02
"""Losses that differ by a larger share, in the mean over the networks, are another training's."""


def measure(library: str, name: str, backend: str = "numba-cpu") -> dict[str, Any]:
    """Train the networks of a case.

    Parameters
    ----------
    library, name : str
        Of `LIBRARIES` and of `CASES`.
    backend : str
        Of this package. With "cupy", jax has to run on the GPU too; scikit-learn has no other than the CPU.

    Returns
    -------
    dict
        seconds: for a step of one network; losses: of the last epoch of each network.
    """
    if backend == "cupy":
        os.environ["JAX_PLATFORMS"] = "cuda"
    seconds, losses = LIBRARIES[library](CASES[name], backend)
    return {"seconds": seconds, "losses": losses.tolist()}


def _networks(case: Case, X: np.ndarray, Y: np.ndarray, count: int, backend: str) -> list[Any]:
    from fusedmlp import Network

    loss = "binary_cross_entropy" if len(Y) == 1 else "categorical_cross_entropy"
    return [Network(case.layers(X, Y), "relu", loss, random_state=seed, backend=backend) for seed in range(count)]


def _weights(network: Any) -> np.ndarray:
    return network.backend.to_numpy(network.parameters.flat)


def _fit_many(case: Case, backend: str) -> Result:
    from fusedmlp import fit_many

    X, Y = case.data()
    arguments = {"epochs": case.epochs, "batch_size": case.batch_size}
    fit_many(_networks(case, X, Y, 2, backend), X, Y, epochs=1, batch_size=case.batch_size)  # compiles
    networks = _networks(case, X, Y, case.networks, backend)
    start = time.perf_counter()
    histories = fit_many(networks, X, Y, **arguments)
    seconds = time.perf_counter() - start
    alone = _networks(case, X, Y, 1, backend)[0]
    alone.fit(X, Y, **arguments)
    if not np.array_equal(_weights(alone), _weights(networks[0])):
        raise AssertionError("fit_many: the first network has other weights than when it is trained alone")
    return seconds / (case.steps(X.shape[1]) * case.networks), np.array([history.loss[-1] for history in histories])


def _in_turn(case: Case, backend: str) -> Result:
    X, Y = case.data()
    arguments = {"epochs": case.epochs, "batch_size": case.batch_size}
    _networks(case, X, Y, 1, backend)[0].fit(X, Y, epochs=1, batch_size=case.batch_size)
    networks = _networks(case, X, Y, case.fewer, backend)
    start = time.perf_counter()
    losses = [network.fit(X, Y, **arguments).loss[-1] for network in networks]
    return (time.perf_counter() - start) / (case.steps(X.shape[1]) * case.fewer), np.array(losses)


def _jax(case: Case, backend: str) -> Result:
    """An epoch of whole batches is one ``lax.scan``; all networks by ``vmap``; weights and orders are those of ours."""
    import jax
    from jax import numpy as jnp

    jax.config.update("jax_enable_x64", False)
    X, Y = case.data()
    m, networks = X.shape[1], _networks(case, X, Y, case.networks, "numba-cpu")  # for their weights
    layers = [
        jnp.asarray(np.stack([array.reshape(array.shape if part == 0 else -1) for array in arrays]))
        for pair in zip(*[zip(net.weights, net.biases, strict=True) for net in networks], strict=True)
        for part, arrays in enumerate(zip(*pair, strict=True))
    ]
    orders = [jnp.asarray([net._generator.permutation(m) for net in networks]) for _ in range(case.epochs)]
    epoch = _jax_epoch(case, jnp.asarray(X.T), jnp.asarray(Y.T))
    zeros = [jnp.zeros_like(x) for x in layers]
    start_state = layers, zeros, zeros, jnp.zeros(case.networks)
    jax.block_until_ready(epoch(start_state, orders[0]))
    start, state = time.perf_counter(), start_state
    for order in orders:
        state, losses = epoch(state, order)
    jax.block_until_ready(losses)
    return (time.perf_counter() - start) / (case.steps(m) * case.networks), np.asarray(losses)


def _jax_epoch(case: Case, X: Any, Y: Any) -> Callable[..., Any]:
    import jax
    from jax import numpy as jnp

    m = len(X)
    whole = m // case.batch_size

    def loss(layers: Any, x: Any, y: Any) -> Any:
        for layer in range(0, len(layers), 2):
            z = x @ layers[layer] + layers[layer + 1]
            x = jax.nn.relu(z)
        if y.shape[1] == 1:
            return (jax.nn.softplus(z) - y * z).mean()
        return -(y * jax.nn.log_softmax(z)).sum(axis=1).mean()

    def step(state: Any, samples: Any) -> Any:
        theta, first, second, t = state
        J, g = jax.value_and_grad(loss)(theta, X[samples], Y[samples])
        t = t + 1
        rate = 0.001 * jnp.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, g)
        second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, second, g)
        theta = jax.tree.map(lambda p, m, v: p - rate * m / (jnp.sqrt(v) + 1e-8), theta, first, second)
        return (theta, first, second, t), J

    def epoch(state: Any, order: Any) -> Any:
        state, losses = jax.lax.scan(step, state, order[: whole * case.batch_size].reshape(whole, case.batch_size))
        total = losses.sum() * case.batch_size
        if m % case.batch_size:
            state, J = step(state, order[whole * case.batch_size :])
            total += J * (m % case.batch_size)
        return state, total / m

    return jax.jit(jax.vmap(epoch))


def _sklearn_fit(case: Case, seed: int) -> float:
    """The loss of the last epoch; called in a process of joblib's."""
    from sklearn.neural_network import MLPClassifier

    X, Y = case.data()
    labels = Y[0] if len(Y) == 1 else Y.argmax(axis=0)
    model = MLPClassifier(
        case.hidden, alpha=0.0, batch_size=case.batch_size, max_iter=case.epochs, random_state=seed, tol=0.0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.fit(X.T, labels).loss_


def _sklearn(case: Case, backend: str) -> Result:
    from joblib import Parallel, delayed
    from joblib.externals.loky import get_reusable_executor

    m = case.data()[0].shape[1]
    with Parallel(n_jobs=2) as parallel:
        parallel(delayed(_sklearn_fit)(case, seed) for seed in range(2))  # starts the processes
        start = time.perf_counter()
        losses = parallel(delayed(_sklearn_fit)(case, seed) for seed in range(case.fewer))
        seconds = time.perf_counter() - start
    get_reusable_executor().shutdown(wait=True)
    return seconds / (case.steps(m) * case.fewer), np.array(losses)


LIBRARIES: dict[str, Callable[[Case, str], Result]] = {
    "fit_many": _fit_many,
    "one after the other": _in_turn,
    "jax.vmap": _jax,
    "scikit-learn": _sklearn,
}


def check(ours: np.ndarray, losses: np.ndarray, library: str) -> None:
    """See that another library trained the same thing; scikit-learn draws other weights, so means are compared.

    Raises
    ------
    AssertionError
        It did not.
    """
    apart = abs(losses.mean() / ours[: len(losses)].mean() - 1)
    if not apart < (0.25 if library == "scikit-learn" else LARGEST_APART):
        raise AssertionError(f"{library}: the mean loss is {losses.mean():.4g}; expected {ours.mean():.4g}")
