"""The libraries by name, imported only in the processes that measure them."""

from __future__ import annotations

import importlib
import importlib.util
from typing import NamedTuple

from bench.peers.cases import Case
from bench.peers.peer import Peer


class Library(NamedTuple):
    """An entry of `PEERS`.

    Attributes
    ----------
    location : str
        Module and class.
    module : str
        The module that has to be importable.
    command : str
        The pip command that installs it.
    devices : dict
        The tasks on each kind of device.
    corrected_epsilon : bool
        Whether its Adam adds epsilon to the root of the corrected second moment: see `exact.epoch_of_adam`.
    """

    location: str
    module: str
    command: str
    devices: dict[str, tuple[str, ...]]
    corrected_epsilon: bool = False


ALL, GPU = ("step", "epoch", "forward"), ("step", "epoch")
_OWN, _PEERS = "pip install fusedmlp", "pip install 'fusedmlp[peers]'"
PEERS = {
    "fused": Library("fusedmlp_peer:Fused", "fusedmlp", _OWN, {"cpu": ALL, "cuda": GPU}),
    "composed": Library("fusedmlp_peer:Composed", "fusedmlp", _OWN, {"cpu": ALL, "cuda": ("step",)}),
    "numpy": Library("fusedmlp_peer:Numpy", "fusedmlp", _OWN, {"cpu": ALL}),
    "torch": Library("torch_peer:Torch", "torch", _PEERS, {"cpu": ALL, "cuda": GPU}, corrected_epsilon=True),
    "torch.compile": Library(
        "torch_peer:TorchCompile", "torch", _PEERS, {"cpu": ("step", "forward"), "cuda": ("step",)}
    ),
    "torch, CUDA graph": Library(
        "torch_peer:TorchGraph", "torch", _PEERS, {"cuda": ("epoch",)}, corrected_epsilon=True
    ),
    "jax": Library("jax_peer:Jax", "jax", _PEERS, {"cpu": ALL, "cuda": GPU}),
    "scikit-learn": Library("sklearn_peer:Sklearn", "sklearn", "pip install scikit-learn", {"cpu": ALL}),
}
"""In the order of a report."""
OURS = ("fused", "composed", "numpy")
"""The package's own engines. They are not counted as peers of the fused one."""


def names(kind: str) -> list[str]:
    """The libraries that are measured on a kind of device."""
    return [name for name, library in PEERS.items() if kind in library.devices]


def missing(name: str) -> str | None:
    """Why a library cannot be measured, where it is not installed."""
    library = PEERS[name]
    if importlib.util.find_spec(library.module) is not None:
        return None
    return f"{library.module} is not installed: {library.command}"


def cannot(name: str, case: Case, kind: str) -> str | None:
    """Why a library has no time at a case."""
    if case.only and name not in case.only:
        return f"measured on {', '.join(case.only)} alone at this size"
    return None if case.task in PEERS[name].devices[kind] else f"no {case.task} of its own"


def peer_class(name: str) -> type[Peer]:
    """The class of a library."""
    module, _, attribute = PEERS[name].location.partition(":")
    return getattr(importlib.import_module(f"bench.peers.{module}"), attribute)
