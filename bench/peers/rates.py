"""Measured rates of a GPU, the least time of a case by these rates, and the primitives against the bandwidth."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np

from bench.exact import doubles, oracle, to_host
from bench.measure import WrongResultError
from bench.peers.cases import Case
from bench.peers.device import Device
from fusedmlp import get_backend

COPY_BYTES = {"cuda": 2 * 2**30, "cpu": 2**20}
"""Size of the array that is copied. The sizes for a CPU are those of a test."""
PRODUCT_SIZE = {"cuda": 8192, "cpu": 64}
"""Rows and columns of the matrices that are multiplied."""
PRIMITIVE_SHAPE = {"cuda": (1024, 2**18), "cpu": (16, 64)}
"""(n2, m): arrays of 1 GiB on a GPU, many times its cache."""
ROUNDS = 5
TARGET_SHARE = 0.9
"""The part of the copy's bandwidth that sigmoid and fused_backward should reach."""
PRIMITIVE_TOLERANCE = 1e-5


def measure(device: Device) -> dict[str, float]:
    """The rates of a copy on the device and of large products.

    Returns
    -------
    dict
        bytes_per_second, read and written; strict_flops_per_second and float64_flops_per_second;
        tf32_flops_per_second where the device has TF32.
    """
    xp = device.xp
    source = xp.ones(COPY_BYTES[device.kind] // 4, np.float32)
    target = xp.empty_like(source)
    found = {"bytes_per_second": 2 * source.nbytes / _median(device, lambda: xp.copyto(target, source))}
    n = PRODUCT_SIZE[device.kind]
    a = (xp.arange(n * n, dtype=np.int32) % 1021).astype(np.float32).reshape(n, n) / np.float32(1021)
    b, out = a.T.copy(), xp.empty_like(a)
    for precision in ("strict", "tf32"):
        if device.allow_tf32(precision == "tf32"):
            seconds = _median(device, lambda: xp.matmul(a, b, out=out))
            found[f"{precision}_flops_per_second"] = 2 * n**3 / seconds
    device.allow_tf32(False)
    small = slice(n // 4)  # some GPUs multiply float64 numbers 64 times as slowly
    a, b = a[small, small].astype(np.float64), b[small, small].astype(np.float64)
    found["float64_flops_per_second"] = 2 * len(a) ** 3 / _median(device, lambda: xp.matmul(a, b))
    return found


def primitives(device: Device, bytes_per_second: float) -> dict[str, dict[str, Any]]:
    """sigmoid and fused_backward (one output) of the package: seconds, bytes moved, share of the copy's bandwidth.

    Raises
    ------
    WrongResultError
        A result is not that of float64; nothing is timed then.
    """
    backend, xp = get_backend(device.backend), device.xp
    n, m = PRIMITIVE_SHAPE[device.kind]
    row = (xp.arange(m, dtype=np.float32) % np.float32(997)) / np.float32(100) - np.float32(5)
    column = (xp.arange(n, dtype=np.float32) % np.float32(61)) / np.float32(61) - np.float32(0.5)
    Z, W, dZ = row[None] * column[:, None], column[:, None], row[None] / np.float32(10)
    A, out = xp.empty_like(Z), xp.empty_like(Z)
    samples = xp.asarray(np.r_[0:m:997, m - 1])
    a = oracle.ACTIVATIONS["sigmoid"][0](doubles(to_host(Z[:, samples])))
    error = doubles(to_host(W)) * to_host(dZ[:, samples]) * a * (1 - a)
    works = {
        "sigmoid": (lambda: backend.sigmoid(Z, out=A), A, a, Z.nbytes + A.nbytes),
        "fused_backward": (lambda: backend.fused_backward(W, dZ, A, out=out), out, error, A.nbytes + out.nbytes),
    }
    found = {}
    for name, (call, result, expected, n_bytes) in works.items():
        call()
        worst = float(np.max(np.abs(to_host(result[:, samples]) - expected)) / np.max(np.abs(expected)))
        if not worst <= PRIMITIVE_TOLERANCE:
            raise WrongResultError(f"{name}: error {worst:.2g} of the largest value; expected at most 1e-05")
        seconds = _median(device, call)
        found[name] = {
            "n": n,
            "m": m,
            "seconds": seconds,
            "bytes": n_bytes,
            "share_of_copy": n_bytes / seconds / bytes_per_second,
            "target": TARGET_SHARE,
        }
    return found


def least_seconds(case: Case, rates: dict[str, float], path: str) -> float | None:
    """The least time of a step: its bytes at the measured bandwidth, or its products at the measured rate.

    Parameters
    ----------
    case : Case
    rates : dict
        The result of `measure`.
    path : {"middle", "narrow"}
        With one fused kernel between two products of cuBLAS, the hidden activations are moved four times and X twice;
        where a sample's activations never leave the chip, X and Y once.
    """
    kind = {"high": "strict", "medium": "tf32"}.get(case.precision, "strict") if case.dtype == "float32" else case.dtype
    flops = rates.get(f"{kind}_flops_per_second")
    if case.task != "step" or flops is None:
        return None
    n_bytes = case.sample_bytes
    if path == "middle":
        n_bytes = 4 * case.hidden_bytes + 2 * n_bytes
    return max(n_bytes / rates["bytes_per_second"], case.flops / flops)


def _median(device: Device, call: Callable[[], Any]) -> float:
    """Seconds of a call: the median of rounds, after two that are not counted."""
    for _ in range(2):
        call()
    device.synchronize()
    return statistics.median(device.seconds(call) for _ in range(ROUNDS))
