"""CupyBackend: what selection has to know of the GPU, and the engine for a network."""

from __future__ import annotations

import copy
from functools import cached_property, partial

from fusedmlp.backends.base import PRECISIONS, Backend, check_precision
from fusedmlp.backends.cupy import kernel_sources
from fusedmlp.backends.cupy.captured_engine import CapturedEngine
from fusedmlp.backends.cupy.crowd import GpuCrowd
from fusedmlp.backends.cupy.gpu_primitives import GpuPrimitives
from fusedmlp.backends.cupy.middle_engine import MiddleEngine
from fusedmlp.backends.cupy.narrow_engine import NarrowEngine
from fusedmlp.backends.cupy.paths import Choice, choose_path
from fusedmlp.backends.cupy.probe import find_reason, gigabytes, version_text
from fusedmlp.engines.base import Engine
from fusedmlp.engines.composed import ComposedEngine
from fusedmlp.model.architecture import Architecture


class CupyBackend(GpuPrimitives, Backend):
    """Backend ``cupy``: arrays on the current NVIDIA GPU, products by cuBLAS, the rest by ``kernels/*.cu``."""

    name = "cupy"

    def at_precision(self, precision: str) -> CupyBackend:
        """This backend with products at `precision`; kernels and cuBLAS's handles are shared."""
        return self._at_precision[check_precision("precision", precision)]

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
            "precision": f"{self.precision}: {self._arithmetic()}",
            "versions": f"cupy {self.xp.__version__}, CUDA runtime {version_text(runtime.runtimeGetVersion())}",
            "kernels": ", ".join(f"{file} {digest[:8]}" for file, digest in kernel_sources.hashes().items()),
        }

    def _arithmetic(self) -> str:
        """What float32 products are computed in."""
        card = self.launcher.card()
        if self.precision == "strict":
            return "float32"
        if not card.has_tf32:
            return "float32, because this GPU has no TF32"
        if self.precision == "medium":
            return "TF32"
        if not card.splits_pay:
            return "float32, because three products in TF32 take longer on this GPU"
        return "3xTF32 in the narrow and resident kernels where that is faster, float32 by cuBLAS"

    def engine(self, architecture: Architecture, fused: bool = True) -> Engine:
        """The engine of the path that `choose_path` takes on the current GPU; the composed one with ``fused=False``."""
        if not fused:
            return ComposedEngine(self, architecture)
        choice = choose_path(architecture, self.precision, self.launcher.card())
        engine = self._engine_on(choice, architecture)
        if engine is None:
            return ComposedEngine(self, architecture)
        engine.other_for_batches = partial(self._other_engine, architecture, choice.path)
        return engine

    def crowd(self) -> GpuCrowd:
        """The networks that stay in shared memory, a block or a cluster for each."""
        return GpuCrowd(self)

    def crowd_of_one(self) -> GpuCrowd:
        """The same: several epochs in a launch, and the bits are those that the network has among others."""
        return self.crowd()

    def _engine_on(self, choice: Choice, architecture: Architecture) -> CapturedEngine | None:
        """The engine of a path; None of the composed path."""
        if choice.variant is not None:
            return NarrowEngine(self, architecture, choice.variant)
        return MiddleEngine(self, architecture) if choice.path == "middle" else None

    def _other_engine(self, architecture: Architecture, path: str, batch_size: int) -> CapturedEngine | None:
        """The engine for mini-batches of this size, if they take another path than `path`."""
        choice = choose_path(architecture, self.precision, self.launcher.card(), batch=batch_size)
        return None if choice.path == path else self._engine_on(choice, architecture)
