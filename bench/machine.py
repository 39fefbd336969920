"""Device, threads and versions of a backend. No host name, no path."""

from __future__ import annotations

import platform
from functools import lru_cache
from typing import Any

import cpuinfo
from threadpoolctl import threadpool_info

import fusedmlp
from fusedmlp.backends.base import Backend


@lru_cache(maxsize=1)
def cpu_model() -> str:
    """Such as "AMD EPYC 7763 64-Core Processor"."""
    info = cpuinfo.get_cpu_info()
    return str(info.get("brand_raw") or platform.processor() or platform.machine())


def describe(backend: Backend) -> dict[str, Any]:
    """`device`, `threads` (None on a GPU) and `versions` of a backend."""
    described = backend.describe()
    device = described.get("device", "CPU")
    threads: int | None = None
    if device.startswith("CPU"):
        device = cpu_model()
        blas = max((pool["num_threads"] for pool in threadpool_info()), default=1)
        threads = int(described.get("threads", blas))
    versions = f"fusedmlp {fusedmlp.__version__}, Python {platform.python_version()}, {described.get('versions', '')}"
    return {"device": device, "threads": threads, "versions": versions.rstrip(", ")}
