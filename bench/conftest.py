"""Options, parameters and order of the benchmarks; what their JSON file holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench import results
from bench.grid import Shape, backends_to_measure, full_grid, quick_grid
from bench.measure import measure, too_large
from bench.operations import Operation
from fusedmlp import get_backend
from fusedmlp.backends.selection import unavailable_reason

SECONDS = {"quick": 0.4, "full": 1.0}
"""How long a benchmark is timed, about; checks and warm-up come on top."""
BACKENDS = pytest.StashKey[dict[str, str | None]]()
"""Backends to measure: why each is not available, or None."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fusedmlp benchmarks")
    group.addoption(
        "--quick",
        action="store_true",
        help="a sweep over m and a sweep over n2, in steps of 4, instead of every m with every n2",
    )
    group.addoption("--dtype", choices=["float32", "float64"], default="float32", help="default: float32")


def _asked_for(config: pytest.Config) -> bool:
    """Whether it is ``pytest bench`` that runs: pytest has read the options above only then."""
    return hasattr(config.option, "quick")


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    """No benchmarks in a run over the whole checkout."""
    return None if _asked_for(config) else True


def pytest_configure(config: pytest.Config) -> None:
    if not _asked_for(config):
        return
    try:
        names = backends_to_measure()
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None
    reasons = {name: unavailable_reason(name) for name in names}
    if None not in reasons.values():
        raise pytest.UsageError("; ".join(f"backend {name}: {reason}" for name, reason in reasons.items()))
    config.stash[BACKENDS] = reasons
    _make_folder_of(config.getoption("benchmark_json"))


def _make_folder_of(path: Any) -> None:
    """Before anything runs: pytest-benchmark opens its file after minutes of measuring, and makes no folder."""
    if not isinstance(path, Path):  # not given; or a file that an older pytest-benchmark has opened already
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise pytest.UsageError(f"--benchmark-json: cannot write {path}: {error.strerror}") from None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "shape" not in metafunc.fixturenames:
        return
    grid = quick_grid if metafunc.config.getoption("quick") else full_grid
    metafunc.parametrize("shape", grid(metafunc.config.getoption("dtype")), ids=str)
    backends = [
        pytest.param(name, marks=[pytest.mark.skip(f"backend {name}: {reason}")] if reason else [])
        for name, reason in metafunc.config.stash[BACKENDS].items()
    ]
    metafunc.parametrize("backend", backends, indirect=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Backends follow each other at the same operation and shape: the speed of a machine drifts within minutes."""
    shapes: dict[Shape, int] = {}
    functions: dict[Any, int] = {}
    place: dict[pytest.Item, tuple[int, int]] = {}
    for item in items:
        shape = item.callspec.params.get("shape") if hasattr(item, "callspec") else None
        if isinstance(shape, Shape):
            place[item] = shapes.setdefault(shape, len(shapes)), functions.setdefault(item.function, len(functions))
    items.sort(key=lambda item: place.get(item, (-1, -1)))


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Any:
    return get_backend(request.param)


@pytest.fixture
def timed(benchmark: Any, backend: Any, request: pytest.FixtureRequest) -> Callable[[Operation], None]:
    """Check and time an operation on the backend of the test; one whose operands are too large is skipped."""
    seconds = SECONDS["quick" if request.config.getoption("quick") else "full"]

    def run(operation: Operation) -> None:
        reason = too_large(operation)
        if reason:
            pytest.skip(reason)
        measure(benchmark, operation, backend, seconds)

    return run


def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    results.strip(output_json)
