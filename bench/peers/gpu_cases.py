"""The cases that are measured on a GPU."""

from __future__ import annotations

from typing import Any, NamedTuple

from bench.peers.cases import SOFTMAX, Case

AT_TF32 = ("fused", "torch, CUDA graph", "jax")
"""The libraries of an epoch with TF32. The others' epochs take as long as in strict float32: they wait for launches."""


class Group(NamedTuple):
    """Cases of one shape, which share their numbers.

    Attributes
    ----------
    cases : tuple of Case
    target : float
        The speed that the fused engine should reach, as a multiple of that of `against`.
    against : str
        A library, or "best peer".
    """

    cases: tuple[Case, ...]
    target: float = 1.0
    against: str = "best peer"


def _steps(layer_sizes: tuple[int, ...], m: int, target: float = 1.0, **more: Any) -> Group:
    precisions = ("strict",) if more.get("dtype") == "float64" else ("strict", "medium")
    return Group(tuple(Case("step", layer_sizes, m, precision=name, **more) for name in precisions), target)


def _epochs(layer_sizes: tuple[int, ...], m: int, batch_size: int, **more: Any) -> Group:
    cases = (
        Case("epoch", layer_sizes, m, batch_size=batch_size, precision=precision, only=only, **more)
        for precision, only in (("strict", ()), ("medium", AT_TF32))
    )
    return Group(tuple(cases))


def _relu(loss: str) -> dict[str, str]:
    return {"hidden_activation": "relu", "loss": loss}


_BINARY = "binary_cross_entropy"
_SMALL = Case("epoch", (30, 64, 1), 569, batch_size=32)
GROUPS = {
    "epoch-30-64": Group((_SMALL, Case("epoch", (30, 64, 1), 569, batch_size=569)), 5.0, "torch"),
    "epoch-13-50": _epochs((13, 50, 1), 20_000, 64, hidden_activation="tanh", loss="squared_error"),
    "epoch-784-128": _epochs((784, 128, 10), 60_000, 128, loss=SOFTMAX),
    "epoch-784-128-relu": _epochs((784, 128, 10), 60_000, 1024, **_relu(SOFTMAX)),
    "epoch-784-512-512": _epochs((784, 512, 512, 10), 60_000, 256, **_relu(SOFTMAX)),
    "epoch-28-300-300": _epochs((28, 300, 300, 1), 1_000_000, 4096, **_relu(_BINARY)),
    "epoch-54-100": _epochs((54, 100, 7), 500_000, 200, **_relu(SOFTMAX)),
    "784-1024": _steps((784, 1024, 1), 65_536, 1.3),
    "784-512-512": _steps((784, 512, 512, 10), 65_536, **_relu(SOFTMAX)),
    "300-100": _steps((300, 100, 1), 2**20),
    "20-100": _steps((20, 100, 1), 2**21, dtype="float64"),
    "28-300-300": _steps((28, 300, 300, 1), 2**20, **_relu(_BINARY)),
    "200-2000": _steps((200, 2000, 1), 2**18),
    "64-256": _steps((64, 256, 4), 2**21, loss=SOFTMAX),
    "8-32": _steps((8, 32, 1), 2**24),
    "100-64": _steps((100, 64, 1), 2**23, hidden_activation="tanh"),
    "64-1024": _steps((64, 1024, 1), 2**20, 2.5),
    "128-1024": _steps((128, 1024, 1), 2**20),
    "32-512": _steps((32, 512, 1), 2**22, **_relu(_BINARY)),
    "16-256": _steps((16, 256, 1), 2**24, 4.0),
}
"""The cases by name. Those that need the most memory come last, because not every library gives it back."""
QUICK = ("epoch-30-64", "epoch-784-128-relu", "784-1024", "64-1024")


def group_of(case: Case) -> Group | None:
    """The group of a case."""
    return next((group for group in GROUPS.values() if case in group.cases), None)
