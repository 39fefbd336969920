"""A device as the benchmark needs it: arrays, time, memory and a name. The GPU, and the CPU in its place for tests."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from fusedmlp.backends.selection import unavailable_reason


class Device(ABC):
    """Where things are measured.

    Attributes
    ----------
    kind : {"cuda", "cpu"}
        As torch and jax call it.
    backend : str
        The package's backend for it.
    """

    kind: ClassVar[str]
    backend: ClassVar[str]

    @classmethod
    def unavailable_reason(cls) -> str | None:
        """Why it cannot be used, with the pip command that mends it."""
        return unavailable_reason(cls.backend)

    @property
    @abstractmethod
    def xp(self) -> Any:
        """Its array module: cupy or numpy."""

    @abstractmethod
    def describe(self) -> dict[str, str]:
        """name, compute_capability, driver, cuda_runtime: no host name, no path."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until all its work is done."""

    @abstractmethod
    def seconds(self, run: Callable[[], object]) -> float:
        """The time of what `run` makes the device do."""

    @abstractmethod
    def free_bytes(self) -> int | None:
        """Memory that can be had, once what this process only keeps in reserve is given back; None: not known."""

    @abstractmethod
    def held_bytes(self) -> int | None:
        """What this process has taken from the device through the array module; None: not known."""

    @abstractmethod
    def allow_tf32(self, allowed: bool) -> bool:
        """Whether the array module's float32 products may use TF32 from now on; False where it has none."""


class Cuda(Device):
    """The current NVIDIA GPU, through CuPy."""

    kind = "cuda"
    backend = "cupy"

    @property
    def xp(self) -> Any:
        import cupy

        return cupy

    def describe(self) -> dict[str, str]:
        runtime = self.xp.cuda.runtime
        properties = runtime.getDeviceProperties(runtime.getDevice())
        name = properties["name"]
        return {
            "name": name.decode() if isinstance(name, bytes) else name,
            "compute_capability": f"{properties['major']}.{properties['minor']}",
            "driver": ", ".join(filter(None, (_driver(), f"CUDA {_version(runtime.driverGetVersion())}"))),
            "cuda_runtime": _version(runtime.runtimeGetVersion()),
            "memory": f"{properties['totalGlobalMem'] / 1e9:.1f} GB",
        }

    def synchronize(self) -> None:
        self.xp.cuda.runtime.deviceSynchronize()

    def seconds(self, run: Callable[[], object]) -> float:
        cuda = self.xp.cuda
        start, stop = cuda.Event(), cuda.Event()
        start.record()
        run()
        stop.record()
        stop.synchronize()
        return cuda.get_elapsed_time(start, stop) / 1e3

    def free_bytes(self) -> int | None:
        self.xp.get_default_memory_pool().free_all_blocks()
        return self.xp.cuda.runtime.memGetInfo()[0]

    def held_bytes(self) -> int | None:
        return self.xp.get_default_memory_pool().total_bytes()

    def allow_tf32(self, allowed: bool) -> bool:
        core, linalg = self.xp._core, self.xp._core._routines_linalg
        wanted = linalg.COMPUTE_TYPE_TF32 if allowed else linalg.COMPUTE_TYPE_DEFAULT
        core.set_compute_type(np.float32, wanted)
        return core.get_compute_type(np.float32) == wanted  # a GPU older than Ampere stays with float32


class Host(Device):
    """The CPU: what a test uses in a GPU's place."""

    kind = "cpu"
    backend = "numpy"

    @property
    def xp(self) -> Any:
        return np

    def describe(self) -> dict[str, str]:
        return {"name": "CPU in place of a GPU", "compute_capability": "", "driver": "", "cuda_runtime": ""}

    def synchronize(self) -> None:
        pass

    def seconds(self, run: Callable[[], object]) -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    def free_bytes(self) -> int | None:
        return None

    def held_bytes(self) -> int | None:
        return None

    def allow_tf32(self, allowed: bool) -> bool:
        return not allowed


DEVICES: dict[str, type[Device]] = {device.kind: device for device in (Cuda, Host)}


def slug(name: str) -> str:
    """A folder's name for a device: "nvidia-h100-80gb-hbm3"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _driver() -> str:
    """Of the kernel module, such as "580.65.06"; empty where nvidia-smi does not say."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return ""
    query = [command, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.splitlines()[0].strip() if done.stdout else ""
