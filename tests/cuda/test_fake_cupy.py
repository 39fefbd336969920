"""The fake CuPy has nothing that CuPy lacks: what the host code finds in it, it finds on a GPU's machine too."""

from __future__ import annotations

import importlib
import sys
import types
import warnings

import pytest
from harness import fake_cupy

# The fake's own, for tests.
OWN = {"launches", "cublas", "driver"}
OWN_OF_ARRAYS = {"host", "memory", "device_id"}
OWN_OF_STREAMS = {"clock", "enqueue", "id", "ptr", "run_until", "submit", "synchronized"}


@pytest.fixture(scope="module")
def real():
    """CuPy itself, which needs no GPU to be looked at."""
    loaded = sys.modules.pop("cupy", None)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that CUDA's libraries are not there
            return importlib.import_module("cupy")
    except ImportError as error:
        pytest.skip(f"CuPy is not installed: {error}")
    finally:
        if loaded is not None:
            sys.modules["cupy"] = loaded


def names(x):
    return {name for name in dir(x) if not name.startswith("_")}


@pytest.mark.parametrize(
    ("place", "own"),
    [
        ("", OWN),
        ("cuda", set()),
        ("cuda.runtime", set()),
        ("cuda.memory", set()),
        ("cuda.Device", {"current"}),
        ("cuda.Event", {"stream"}),
        ("cuda.Stream", OWN_OF_STREAMS),
        ("ndarray", OWN_OF_ARRAYS),
    ],
)
def test_every_name_is_cupys(real, place, own):
    fake = fake_cupy.make()
    for part in place.split(".") if place else ():
        fake, real = getattr(fake, part), getattr(real, part)
    found = set(vars(fake)) if isinstance(fake, types.SimpleNamespace | types.ModuleType) else names(fake)
    missing = {name for name in found if not name.startswith("_") and not hasattr(real, name)}
    assert missing <= own, missing - own


@pytest.mark.parametrize(
    ("place", "attributes"),
    [
        ("cuda.Graph", {"launch"}),
        (
            "RawKernel",
            {"kernel", "max_dynamic_shared_size_bytes", "num_regs", "local_size_bytes", "max_threads_per_block"},
        ),
        ("cuda.MemoryPointer", {"ptr", "device_id", "copy_from_host_async"}),
        ("cuda.MemoryPool", {"free_all_blocks", "free_bytes", "used_bytes", "get_limit"}),
    ],
)
def test_what_is_used_of_other_classes(real, place, attributes):
    for part in place.split("."):
        real = getattr(real, part)
    assert attributes <= names(real)
