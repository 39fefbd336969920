"""Backend: what a backend is. Primitives, an engine made of them, and what selection has to know."""

from __future__ import annotations

from abc import abstractmethod

from fusedmlp.backends.libraries import library_versions
from fusedmlp.checks import check_choice
from fusedmlp.engines.base import Engine
from fusedmlp.engines.crowd import Crowd
from fusedmlp.engines.primitives import Primitives
from fusedmlp.model.architecture import Architecture

PRECISIONS = ("strict", "high", "medium")
"""The precisions of float32 products, by their relative error against float64: that of float32 arithmetic, which is the
default; at most 2e-6; at most 5e-4. Each is a permission: a backend takes what is fastest within the bound."""

OTHER_NAMES = {"tf32": "medium"}
"""Other names of precisions."""


def check_precision(argument: str, value: object) -> str:
    """The precision of a name, "medium" for "tf32"; another value is a ValueError that names the argument."""
    name = check_choice(argument, value, (*PRECISIONS, *OTHER_NAMES))
    return OTHER_NAMES.get(name, name)


class Backend(Primitives):
    """Arrays, primitives and engines of one kind of hardware; see `Primitives` for its attributes."""

    @classmethod
    def unavailable_reason(cls) -> str | None:
        """Why this machine cannot run the backend, with the pip command that mends it; None where it can."""
        return None

    def at_precision(self, precision: str) -> Backend:
        """This backend with products at `precision`: itself where the hardware has no other than "strict"."""
        return self

    def describe(self) -> dict[str, str]:
        """Device, threads, libraries and versions, for ``fusedmlp info``; "device" and "versions" at the least."""
        module = type(self).__module__.partition(".")[0]
        return {"device": "not described", "versions": library_versions([module, "numpy"]) or "not described"}

    @abstractmethod
    def engine(self, architecture: Architecture, fused: bool = True) -> Engine:
        """An engine for whole passes: this backend's fused one where it has one, else the composed one."""

    def crowd(self) -> Crowd | None:
        """What trains many networks of this backend at once, for one `fit_many`; None: they are trained in turn."""
        return None

    def crowd_of_one(self) -> Crowd | None:
        """What trains a network by itself, for one `fit`; None: its engine does, an epoch at a time."""
        return None
