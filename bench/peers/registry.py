"""The libraries by name, imported when they are needed."""

from __future__ import annotations

import importlib
import importlib.util

from bench.peers.peer import Peer

PEERS = {
    # name: (module and class, what has to be importable, the pip command that brings it)
    "fused": ("fusedmlp_peer:Fused", "fusedmlp", "pip install fusedmlp"),
    "composed": ("fusedmlp_peer:Composed", "fusedmlp", "pip install fusedmlp"),
    "numpy": ("fusedmlp_peer:Numpy", "fusedmlp", "pip install fusedmlp"),
    "torch": ("torch_peer:Torch", "torch", "pip install 'fusedmlp[peers]'"),
    "torch.compile": ("torch_peer:TorchCompile", "torch", "pip install 'fusedmlp[peers]'"),
    "jax": ("jax_peer:Jax", "jax", "pip install 'fusedmlp[peers]'"),
    "scikit-learn": ("sklearn_peer:Sklearn", "sklearn", "pip install scikit-learn"),
}
"""In the order of a report."""
OURS = ("fused", "composed", "numpy")
"""Engines of the package: no peers of the fused one."""


def missing(name: str) -> str | None:
    """Why a library cannot be measured, where it is not installed."""
    _, module, command = PEERS[name]
    if importlib.util.find_spec(module) is not None:
        return None
    return f"{module} is not installed: {command}"


def peer_class(name: str) -> type[Peer]:
    """The class of a library."""
    module, _, attribute = PEERS[name][0].partition(":")
    return getattr(importlib.import_module(f"bench.peers.{module}"), attribute)
