"""JAX: everything inside jax.jit, an epoch as one ``lax.scan`` over its batches."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from bench.peers.cases import ADAM, BCE, SOFTMAX, Case
from bench.peers.device import Device
from bench.peers.peer import Bound, Latest, NotHereError, Peer, named_epoch, named_step, repeat
from bench.peers.problem import Problem


class Jax(Peer):
    """On a CPU, XLA takes as many threads as the process has cores."""

    distributions = ("jax", "jaxlib", "jax-cuda13-plugin", "jax-cuda12-plugin")

    def __init__(self, device: Device, threads: int) -> None:
        super().__init__(device, threads)
        import jax

        jax.config.update("jax_platforms", device.kind)
        self._jax = jax
        self._cuda = device.kind == "cuda"
        try:
            jax.devices()
        except RuntimeError as error:
            raise NotHereError(f"jax has no {device.kind} here: {error}".splitlines()[0]) from None

    def seconds(self, bound: Bound, calls: int) -> float:
        """jax has no device events: many calls and one wait, by the wall clock."""
        start = time.perf_counter()
        repeat(bound, calls)
        self._jax.block_until_ready(getattr(bound.call, "value", None))
        return time.perf_counter() - start

    def memory(self) -> int | None:
        return self._statistics().get("bytes_in_use") if self._cuda else super().memory()

    def peak(self) -> int | None:
        """On a GPU an upper bound: jax never forgets its peak."""
        return self._statistics().get("peak_bytes_in_use") if self._cuda else super().peak()

    def _statistics(self) -> dict[str, int]:
        return self._jax.devices()[0].memory_stats() or {}

    def _array(self, x: Any) -> Any:
        """x on the device; where it lies there already (a CuPy array), without a copy."""
        return self._jax.numpy.asarray(x) if isinstance(x, np.ndarray) else self._jax.dlpack.from_dlpack(x)

    def _finished(self, value: Any) -> Any:
        """`value`: on a CPU after it is computed, on a GPU at once, so that the host can queue more work."""
        return value if self._cuda else self._jax.block_until_ready(value)

    def _logits(self, case: Case, layers: Any, X: Any) -> Any:
        jax = self._jax
        activation, A = _activation(jax, case.hidden_activation), X
        for layer in range(0, len(layers), 2):
            Z = A @ layers[layer] + layers[layer + 1]
            A = activation(Z)
        return Z

    def _loss(self, case: Case) -> Any:
        per_sample = _per_sample(self._jax, case.loss)

        def loss(layers: Any, X: Any, Y: Any) -> Any:
            j = per_sample(self._logits(case, layers, X), Y)
            return j.sum() if case.loss == "sum_squared_error" else j.mean()

        return loss

    def bind(self, problem: Problem) -> Bound:
        jax, case = self._jax, problem.case
        if self._cuda:
            precision = "tensorfloat32" if case.precision == "medium" else "highest"
            jax.config.update("jax_default_matmul_precision", precision)
        jax.config.update("jax_enable_x64", case.dtype == "float64")
        X, Y = self._array(problem.X), self._array(problem.Y)
        layers = [self._array(x) for x in problem.layers()]
        if case.task == "forward":
            output = _output(jax, case.loss)
            forward = jax.jit(lambda layers, X: output(self._logits(case, layers, X)))
            A = Latest(lambda: self._finished(forward(layers, X)))
            return Bound(A, lambda: {"A": A.value})
        if case.task == "epoch":
            return self._epoch(problem, layers, X, Y)
        function = jax.jit(jax.value_and_grad(self._loss(case)))
        latest = Latest(lambda: self._finished(function(layers, X, Y)))
        return Bound(latest, lambda: named_step(case, latest.value[0], latest.value[1]))

    def _epoch(self, problem: Problem, layers: Any, X: Any, Y: Any) -> Bound:
        jax, case = self._jax, problem.case
        jnp, slope = jax.numpy, jax.value_and_grad(self._loss(case))
        batch_size = case.batch_size or case.m
        whole = case.m // batch_size
        order = self._array(problem.order)

        def step(state: Any, samples: Any) -> Any:
            theta, first, second, t = state
            J, g = slope(theta, X[samples], Y[samples])
            t = t + 1
            rate = ADAM.learning_rate * jnp.sqrt(1 - ADAM.beta_2**t) / (1 - ADAM.beta_1**t)
            first = jax.tree.map(lambda m, g: ADAM.beta_1 * m + (1 - ADAM.beta_1) * g, first, g)
            second = jax.tree.map(lambda v, g: ADAM.beta_2 * v + (1 - ADAM.beta_2) * g * g, second, g)
            theta = jax.tree.map(lambda p, m, v: p - rate * m / (jnp.sqrt(v) + ADAM.epsilon), theta, first, second)
            return (theta, first, second, t), J

        @jax.jit
        def epoch(state: Any, order: Any) -> Any:
            batches = order[: whole * batch_size].reshape(whole, batch_size)
            state, losses = jax.lax.scan(step, state, batches)
            total = losses.sum() * batch_size
            if case.m % batch_size:  # the last batch is smaller, so it has a step of its own
                state, J = step(state, order[whole * batch_size :])
                total += J * (case.m % batch_size)
            return state, total / case.m

        zeros = [jnp.zeros_like(x) for x in layers]
        latest = Latest(lambda: None)
        latest.value = ((layers, zeros, zeros, jnp.zeros((), case.dtype)), None)
        latest.function = lambda: self._finished(epoch(latest.value[0], order))
        return Bound(latest, lambda: named_epoch(problem, latest.value[1], latest.value[0][0]))


def _activation(jax: Any, name: str) -> Any:
    """A hidden activation of the package, by jax's function for it."""
    if name == "gelu":
        return lambda Z: jax.nn.gelu(Z, approximate=False)
    others = {"tanh": jax.numpy.tanh, "identity": lambda Z: Z, "softsign": jax.nn.soft_sign}
    return others.get(name) or getattr(jax.nn, name)


def _output(jax: Any, loss: str) -> Any:
    """The output activation of a loss."""
    outputs = {
        BCE: jax.nn.sigmoid,
        "sum_squared_error": jax.nn.sigmoid,
        SOFTMAX: jax.nn.softmax,
        "poisson": jax.numpy.exp,
    }
    return outputs.get(loss, lambda Z: Z)


def _per_sample(jax: Any, loss: str) -> Any:
    """j of every sample, shape (m,), from the logits."""
    jnp = jax.numpy

    def huber(Z: Any, Y: Any) -> Any:
        r = jnp.abs(Z - Y)
        return jnp.where(r > 1, r - 0.5, 0.5 * r * r)

    values = {
        BCE: lambda Z, Y: jax.nn.softplus(Z) - Y * Z,
        SOFTMAX: lambda Z, Y: -Y * jax.nn.log_softmax(Z),
        "squared_error": lambda Z, Y: 0.5 * (Z - Y) ** 2,
        "poisson": lambda Z, Y: jax.scipy.special.xlogy(Y, Y) - Y * Z - Y + jnp.exp(Z),
        "sum_squared_error": lambda Z, Y: 0.5 * (jax.nn.sigmoid(Z) - Y) ** 2,
        "absolute_error": lambda Z, Y: jnp.abs(Z - Y),
        "huber": huber,
        "quantile": lambda Z, Y: 0.5 * jnp.abs(Z - Y),
    }
    value = values[loss]
    return lambda Z, Y: value(Z, Y).sum(axis=1)
