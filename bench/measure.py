"""Measuring one operation on one backend: first whether the result is right, then how long it takes."""

from __future__ import annotations

import math
from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np

from bench.machine import describe
from bench.operations import Bound, Operation
from fusedmlp.backends.base import Backend

TOLERANCE = {
    # (dtype, whether results are sums over samples): the largest error, relative to the largest number of the result
    ("float32", False): 1e-5,
    ("float32", True): 1e-4,
    ("float64", False): 1e-13,
    ("float64", True): 1e-11,
}
MOST_OPERAND_BYTES = 2 * 2**30
"""Operations whose operands and results are larger are not measured."""
ROUND_SECONDS = 2e-3
"""A round lasts at least this long: as many calls as it takes."""
ROUNDS = (3, 50)
"""The fewest and the most rounds."""
SLOW_CALL_SECONDS = 2.0
"""A call that takes longer is timed once."""


class WrongResultError(AssertionError):
    """A backend computed something else than it should have."""


def too_large(operation: Operation) -> str | None:
    """Why `operation` is not measured, where its operands need too much memory."""
    if operation.operand_bytes <= MOST_OPERAND_BYTES:
        return None
    return f"operands of {operation.operand_bytes / 2**30:.1f} GiB, more than {MOST_OPERAND_BYTES / 2**30:g} GiB"


def check(operation: Operation, result: dict[str, np.ndarray], backend: str) -> None:
    """Compare a result with the exact one.

    Raises
    ------
    WrongResultError
        A dtype, a shape or a value is wrong, or a value is not finite.
    """
    where = f"{operation.name} on {backend} at {operation.shape}"
    tolerance = TOLERANCE[operation.shape.dtype, operation.reduces]
    for name, expected in operation.expected().items():
        got = result[name]
        if got.dtype != operation.shape.dtype or got.shape != expected.shape:
            raise WrongResultError(
                f"{where}: {name}: expected {operation.shape.dtype} of shape {expected.shape}; "
                f"got {got.dtype} of shape {got.shape}"
            )
        error = float(np.max(np.abs(got - expected)) / np.max(np.abs(expected)))
        if not error <= tolerance:  # NaN is not
            raise WrongResultError(
                f"{where}: {name}: the largest error is {error:.2g} of the largest value; "
                f"expected at most {tolerance:g}"
            )


def plan_rounds(seconds_per_call: float, seconds: float) -> tuple[int, int]:
    """(rounds, calls of a round) that fill about `seconds`."""
    if seconds_per_call > SLOW_CALL_SECONDS:
        return 1, 1
    calls = max(1, math.ceil(ROUND_SECONDS / seconds_per_call))
    fewest, most = ROUNDS
    return min(most, max(fewest, int(seconds / (calls * seconds_per_call)))), calls


def _seconds_per_call(call: Callable[[], Any]) -> float:
    """The quickest of up to three calls, which also warm everything up."""
    quickest = math.inf
    for _ in range(3):
        start = perf_counter()
        call()
        quickest = min(quickest, perf_counter() - start)
        if quickest > 0.05:
            break
    return quickest


def measure(benchmark: Any, operation: Operation, backend: Backend, seconds: float) -> None:
    """Check `operation` on `backend`, then time it with pytest-benchmark for about `seconds`.

    Raises
    ------
    WrongResultError
        Before anything is timed.
    """
    bound: Bound = operation.bind(backend)

    def call() -> None:
        bound.call()
        backend.synchronize()

    call()
    check(operation, bound.result(), backend.name)
    shape = operation.shape
    benchmark.group = f"{operation.name} {shape} n3_{shape.n3}"
    benchmark.extra_info.update(
        operation=operation.name,
        backend=backend.name,
        engine=bound.engine,
        m=shape.m,
        n1=shape.n1,
        n2=shape.n2,
        n3=shape.n3,
        dtype=shape.dtype,
        samples_per_call=shape.m,
        bytes_moved=operation.bytes_moved,
        flops=operation.flops,
        **describe(backend),
    )
    rounds, iterations = plan_rounds(_seconds_per_call(call), seconds)
    benchmark.pedantic(call, rounds=rounds, iterations=iterations)
