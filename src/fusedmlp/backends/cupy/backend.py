"""CupyBackend: what selection has to know of the GPU, and the engine for a network."""

from __future__ import annotations

import copy
from functools import cached_property

from fusedmlp.backends.base import PRECISIONS, Backend
from fusedmlp.backends.cupy import kernel_sources
from fusedmlp.backends.cupy.gpu_primitives import GpuPrimitives
from fusedmlp.backends.cupy.middle_engine import MiddleEngine
from fusedmlp.backends.cupy.narrow_engine import NarrowEngine, variant_on
from fusedmlp.backends.cupy.probe import find_reason, gigabytes, version_text
from fusedmlp.checks import check_choice
from fusedmlp.engines.base import Engine
from fusedmlp.engines.composed import ComposedEngine
from fusedmlp.model.architecture import Architecture


class CupyBackend(GpuPrimitives, Backend):
    """Backend ``cupy``: arrays on the current NVIDIA GPU, products by cuBLAS, the rest by ``kernels/*.cu``."""

    name = "cupy"

    def at_precision(self, precision: str) -> CupyBackend:
        """This backend with products at `precision`; kernels and cuBLAS's handles are shared."""
        return self._at_precision[check_choice("precision", precision, PRECISIONS)]

    @cached_property
    def _at_precision(self) -> dict[str, CupyBackend]:
        siblings = {}
        _ = self.launcher, self.products, self.epilogues, self.optimizer_step  # made before they are shared
        for precision in PRECISIONS:
            siblings[precision] = self if precision == self.precision else copy.copy(self)
            siblings[precision].precision = precision
            siblings[precision].__dict__["_at_precision"] = siblings
        return siblings

    @classmethod
    def unavailable_reason(cls) -> str | None:
        """Why this machine cannot run it; None only after a product and a kernel gave the right numbers here."""
        return find_reason(cls)

    def describe(self) -> dict[str, str]:
        """Device, memory, driver, versions and the hashes of the kernels."""
        runtime = self.xp.cuda.runtime
        device = runtime.getDevice()
        properties = runtime.getDeviceProperties(device)
        free, total = runtime.memGetInfo()
        name = properties["name"]
        name = name.decode() if isinstance(name, bytes) else name
        return {
            "device": f"GPU {device}, {name}, compute capability {properties['major']}.{properties['minor']}",
            "memory": f"{gigabytes(free)} of {gigabytes(total)} free",
            "driver": f"for CUDA {version_text(runtime.driverGetVersion())}",
            "BLAS": f"cuBLAS {self.products.version()}",
            "precision": self.precision,
            "versions": f"cupy {self.xp.__version__}, CUDA runtime {version_text(runtime.runtimeGetVersion())}",
            "kernels": ", ".join(f"{file} {digest[:8]}" for file, digest in kernel_sources.hashes().items()),
        }

    def engine(self, architecture: Architecture, fused: bool = True) -> Engine:
        """The first fused engine that covers the network; the composed one for others, and with ``fused=False``."""
        if fused and NarrowEngine.covers(architecture) and (variant := variant_on(self, architecture)):
            return NarrowEngine(self, architecture, variant)
        if fused and MiddleEngine.covers(architecture):
            return MiddleEngine(self, architecture)
        return ComposedEngine(self, architecture)
