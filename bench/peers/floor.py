"""The least time that a task could take on this machine, from three rates that are measured on it.

A step has to do the products (`Case.flops`, at the rate of a large sgemm on all threads, or of the package's own
products in cache where that is higher) and the element-wise work of every hidden value, forward and backward, with
operands in cache (one loop of vector instructions each way); an epoch also the optimizer's element-wise work on every
parameter in every step. Nothing is counted for reading X and Y, for products that are too small or too thin to reach
the full rate, and for waking threads: no program reaches the floor.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from bench.peers import own_rates
from bench.peers.cases import Case

_OPTIONS: Any = {"nogil": True, "error_model": "numpy", "fastmath": True}
HIDDEN, SAMPLES = 16, 512
"""Size of the tile whose element-wise work is timed: 32 KiB."""
PARAMETERS = 4096
"""Number of parameters whose Adam step is timed: 64 KiB in four arrays."""
PRODUCT_SIZE = 2048
"""Rows and columns of the matrices whose product gives the rate of products."""
SECONDS = 0.3
"""Time for which each rate is measured."""


@intrinsic
def _as_float(typing_context, bits):
    """The float32 with these bits."""
    return types.float32(types.int32), lambda _, builder, __, args: builder.bitcast(args[0], ir.FloatType())


@njit(**_OPTIONS)
def _exp(x):
    """2ⁿ (1 + r + r²/2 + ... + r⁶/720), n = round(x / ln 2); off by less than 4e-7 of the result."""
    x = min(max(x, np.float32(-87)), np.float32(87))
    n = np.floor(x * np.float32(1.4426950408889634) + np.float32(0.5))
    r = x - n * np.float32(0.6931471805599453)
    p = np.float32(1 / 120) + r * np.float32(1 / 720)
    p = np.float32(1 / 2) + r * (np.float32(1 / 6) + r * (np.float32(1 / 24) + r * p))
    one = np.float32(1)
    return (one + r * (one + r * p)) * _as_float(np.int32((np.int32(n) + 127) << 23))


@njit(**_OPTIONS)
def _sigmoid(z):
    return np.float32(1) / (np.float32(1) + _exp(-z))


@njit(**_OPTIONS)
def _sigmoid_slope(a):
    return a * (np.float32(1) - a)


@njit(**_OPTIONS)
def _tanh(z):
    return np.float32(1) - np.float32(2) / (np.float32(1) + _exp(z + z))


@njit(**_OPTIONS)
def _tanh_slope(a):
    return np.float32(1) - a * a


@njit(**_OPTIONS)
def _relu(z):
    return max(z, np.float32(0))


@njit(**_OPTIONS)
def _relu_slope(a):
    return np.float32(1) if a > np.float32(0) else np.float32(0)


def _sweeps(f, slope):
    """The element-wise work on a tile Z (units, samples), `repeats` times; forward alone, or both ways."""

    @njit(**_OPTIONS)
    def forward(Z, A, b, w, z2):
        z2[:] = np.float32(0)
        for unit in range(Z.shape[0]):
            for s in range(Z.shape[1]):
                a = f(Z[unit, s] + b[unit])
                A[unit, s] = a
                z2[s] += w[unit] * a

    @njit(**_OPTIONS)
    def sweeps(Z, A, dZ, b, w, z2, dw, db, repeats, backward):
        for _ in range(repeats):
            forward(Z, A, b, w, z2)
            if not backward:
                continue
            for unit in range(Z.shape[0]):
                sum_w, sum_b = np.float32(0), np.float32(0)
                for s in range(Z.shape[1]):
                    a = A[unit, s]
                    dz = w[unit] * z2[s] * slope(a)
                    dZ[unit, s] = dz
                    sum_w += a * z2[s]
                    sum_b += dz
                dw[unit], db[unit] = sum_w, sum_b

    return sweeps


ACTIVATIONS = {"sigmoid": (_sigmoid, _sigmoid_slope), "tanh": (_tanh, _tanh_slope), "relu": (_relu, _relu_slope)}


@njit(**_OPTIONS)
def _adam(theta, g, m, v, repeats):
    for _ in range(repeats):
        for k in range(theta.size):
            m[k] += np.float32(0.1) * (g[k] - m[k])
            v[k] += np.float32(0.001) * (g[k] * g[k] - v[k])
            theta[k] -= np.float32(0.001) * m[k] / (np.sqrt(v[k]) + np.float32(1e-8))


def measure(threads: int) -> dict[str, Any]:
    """The rates of this machine with so many threads.

    Returns
    -------
    dict
        flops_per_second (the fastest of `product_rates`), product_rates (by library), nanoseconds per hidden value by
        activation, for a forward pass ("forward_ns") and both ways ("step_ns"), the faster of a loop here and the
        package's own sweeps, and per parameter of an Adam step ("adam_ns"): of all threads together.
    """
    own = 2 * own_rates.ROWS * own_rates.DEPTH * own_rates.SAMPLES
    rates = {"numpy": _numpy_rate(), **_torch_rate(threads)}
    rates["fused"] = own * 1e9 / _side_by_side(threads, own_rates.product_task)
    found: dict[str, Any] = {"flops_per_second": max(rates.values()), "product_rates": rates}
    found |= {"forward_ns": {}, "step_ns": {}}
    for name, (f, slope) in ACTIVATIONS.items():
        sweeps = _sweeps(f, slope)
        for key, backward in (("forward_ns", False), ("step_ns", True)):
            tasks = (
                partial(_sweep_task, sweeps, backward),
                partial(own_rates.sweep_task, name, HIDDEN, SAMPLES, backward),
            )
            found[key][name] = min(_side_by_side(threads, task) for task in tasks) / (HIDDEN * SAMPLES)
    found["adam_ns"] = _side_by_side(threads, _adam_task) / PARAMETERS
    return found


def seconds(case: Case, rates: dict[str, Any]) -> float:
    """The floor of a case."""
    values = rates["forward_ns" if case.task == "forward" else "step_ns"][case.hidden_activation]
    updates = case.steps * case.architecture.n_parameters * rates["adam_ns"]
    return case.flops / rates["flops_per_second"] + (case.hidden_values * values + updates) * 1e-9


def _fastest(call: Callable[[], Any]) -> float:
    """Seconds of the fastest of the calls that fill SECONDS, after one that is not counted."""
    call()
    best, end = float("inf"), perf_counter() + SECONDS
    while perf_counter() < end:
        start = perf_counter()
        call()
        best = min(best, perf_counter() - start)
    return best


def _numpy_rate() -> float:
    a, b = np.random.default_rng(0).standard_normal((2, PRODUCT_SIZE, PRODUCT_SIZE), np.float32)
    out = np.empty_like(a)
    return 2 * PRODUCT_SIZE**3 / _fastest(lambda: np.matmul(a, b, out=out))


def _torch_rate(threads: int) -> dict[str, float]:
    try:
        import torch
    except ImportError:
        return {}
    torch.set_num_threads(threads)
    a = torch.randn(PRODUCT_SIZE, PRODUCT_SIZE)
    out = torch.empty_like(a)
    return {"torch": 2 * PRODUCT_SIZE**3 / _fastest(lambda: torch.mm(a, a, out=out))}


def _sweep_task(sweeps: Any, backward: bool) -> Callable[[int], None]:
    Z = np.random.default_rng(0).standard_normal((HIDDEN, SAMPLES), np.float32)
    b, w = np.linspace(-1, 1, 2 * HIDDEN, dtype=np.float32).reshape(2, HIDDEN)
    arrays = (Z, Z.copy(), Z.copy(), b, w, Z[0].copy(), w.copy(), w.copy())
    return lambda repeats: sweeps(*arrays, repeats, backward)


def _adam_task() -> Callable[[int], None]:
    arrays = np.random.default_rng(0).standard_normal((4, PARAMETERS), np.float32)
    arrays[3] **= 2
    return lambda repeats: _adam(*arrays, repeats)


def _side_by_side(threads: int, make_task: Callable[[], Callable[[int], None]]) -> float:
    """Nanoseconds of one repeat of a task, with `threads` of them at once, divided among them."""
    tasks = [make_task() for _ in range(threads)]
    tasks[0](1)  # compiles
    start = perf_counter()
    tasks[0](20)
    repeats = max(20, int(20 * 0.005 / (perf_counter() - start)))
    with ThreadPoolExecutor(threads) as pool:
        return _fastest(lambda: list(pool.map(lambda task: task(repeats), tasks))) / (repeats * threads) * 1e9
