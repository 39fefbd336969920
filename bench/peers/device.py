"""The device that is measured: its arrays, clock and memory. A CPU, or an NVIDIA GPU through CuPy."""

from __future__ import annotations

import ctypes
import gc
import re
import shutil
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from fusedmlp.backends.selection import unavailable_reason


class Device(ABC):
    """A device, as seen by one process.

    Attributes
    ----------
    kind : {"cpu", "cuda"}
        Its name in torch and jax.
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
        """Its array module: numpy or cupy."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until all its work is done."""

    @abstractmethod
    def seconds(self, run: Callable[[], object]) -> float:
        """The time that the device needs for the work of `run`."""

    @abstractmethod
    def memory(self) -> int | None:
        """Bytes that this process holds now; None where that is not known."""

    @abstractmethod
    def peak(self) -> int | None:
        """The largest `memory` since `forget_peak`."""

    @abstractmethod
    def forget_peak(self) -> None:
        """Give unused memory back to the system, and let `peak` start again."""

    @abstractmethod
    def free_bytes(self) -> int | None:
        """Bytes that can still be allocated; None where that is not known."""

    def allow_tf32(self, allowed: bool) -> bool:
        """Let the array module's float32 products use TF32 from now on, or not; False where it cannot."""
        return not allowed


class Cpu(Device):
    """The processor and main memory."""

    kind = "cpu"
    backend = "numba-cpu"

    @property
    def xp(self) -> Any:
        return np

    def synchronize(self) -> None:
        """Nothing runs in the background."""

    def seconds(self, run: Callable[[], object]) -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    def memory(self) -> int | None:
        return _kilobytes("/proc/self/status", "VmRSS")

    def peak(self) -> int | None:
        return _kilobytes("/proc/self/status", "VmHWM")

    def forget_peak(self) -> None:
        gc.collect()
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def free_bytes(self) -> int | None:
        return _kilobytes("/proc/meminfo", "MemAvailable")


class Cuda(Device):
    """The current NVIDIA GPU."""

    kind = "cuda"
    backend = "cupy"

    @property
    def xp(self) -> Any:
        import cupy

        return cupy

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

    def memory(self) -> int | None:
        return self.xp.get_default_memory_pool().total_bytes()

    def peak(self) -> int | None:
        return self.memory()  # the pool keeps what it has taken

    def forget_peak(self) -> None:
        gc.collect()
        self.xp.get_default_memory_pool().free_all_blocks()

    def free_bytes(self) -> int | None:
        self.forget_peak()
        return self.xp.cuda.runtime.memGetInfo()[0]

    def describe(self) -> dict[str, str]:
        """name, compute_capability, memory, driver, cuda_runtime: no host name, no path."""
        runtime = self.xp.cuda.runtime
        properties = runtime.getDeviceProperties(runtime.getDevice())
        name = properties["name"]
        return {
            "device": name.decode() if isinstance(name, bytes) else name,
            "compute_capability": f"{properties['major']}.{properties['minor']}",
            "memory": f"{properties['totalGlobalMem'] / 1e9:.1f} GB",
            "driver": ", ".join(filter(None, (_driver(), f"CUDA {_version(runtime.driverGetVersion())}"))),
            "cuda_runtime": _version(runtime.runtimeGetVersion()),
        }

    def allow_tf32(self, allowed: bool) -> bool:
        core, linalg = self.xp._core, self.xp._core._routines_linalg
        wanted = linalg.COMPUTE_TYPE_TF32 if allowed else linalg.COMPUTE_TYPE_DEFAULT
        core.set_compute_type(np.float32, wanted)
        return core.get_compute_type(np.float32) == wanted


DEVICES: dict[str, type[Device]] = {device.kind: device for device in (Cpu, Cuda)}


def _kilobytes(path: str, name: str) -> int | None:
    """A line such as "VmRSS:  1234 kB" of a file of Linux, in bytes."""
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB$", Path(path).read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _driver() -> str:
    """The version of the kernel module, such as "580.65.06"; empty where nvidia-smi does not say."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return ""
    query = [command, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.splitlines()[0].strip() if done.stdout else ""
