"""Checksums over some samples, which tell whether data are those of another training."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fusedmlp.engines.feeding import HostMatrix
from fusedmlp.engines.primitives import Primitives
from fusedmlp.engines.samples import Samples
from fusedmlp.engines.sparse import SparseMatrix

_SAMPLES = 1024
"""Samples whose numbers count: evenly spread, the first and the last too."""

Excerpt = np.ndarray | list[bytes]
"""Some samples: as a table; of a sparse matrix, the bytes of each."""


class Whole(NamedTuple):
    """The samples that those of this process are a part of: themselves, where one process trains.

    Attributes
    ----------
    first, total : int
        The number of the first column of X here among the columns of all processes, and how many there are.
    order : numpy.ndarray of int, or None
        Which of the columns are meant, where not all are.
    gathered : callable
        The excerpts of all processes, in their order.
    """

    first: int
    total: int
    order: np.ndarray | None
    gathered: Callable[[Excerpt], list[Excerpt]]

    @classmethod
    def of(cls, samples: Samples) -> Whole:
        """Samples that are all in this process."""
        return cls(0, samples.X.shape[1], samples.order, lambda excerpt: [excerpt])


def samples_described(prefix: str, samples: Samples, whole: Whole, backend: Primitives, dtype: str) -> dict[str, Any]:
    """The shapes of X, Y and the weights, and checksums over some of their samples; which samples are meant.

    The result is plain data, and the same however the samples are spread over processes.

    Parameters
    ----------
    prefix : str
        Of the names.
    samples : Samples
    whole : Whole
    backend : Primitives
    dtype : str
        The network's.
    """
    places = np.unique(np.linspace(0, whole.total - 1, min(whole.total, _SAMPLES)).astype(np.int64))
    here = places[(places >= whole.first) & (places < whole.first + samples.X.shape[1])] - whole.first
    data: dict[str, Any] = {}
    for name, x in {"X": samples.X, "Y": samples.Y, "sample_weight": samples.sample_weight}.items():
        if x is None:
            data[f"{prefix}{name}"] = None
            continue
        excerpts = [each for each in whole.gathered(_excerpt(x, here, backend, dtype)) if len(each)]
        data[f"{prefix}{name}"] = {"shape": [x.shape[0], whole.total], "sha256": _digest(excerpts)}
    if whole.order is not None:
        order = np.ascontiguousarray(whole.order, np.int64)
        data[f"{prefix}samples"] = {"shape": [order.size], "sha256": _short(hashlib.sha256(order.tobytes()))}
    return data


def _excerpt(x: Any, places: np.ndarray, backend: Primitives, dtype: str) -> Excerpt:
    """Some columns in the network's dtype; none, where there are none."""
    if not len(places):
        return []
    if isinstance(x, SparseMatrix):
        stored = (slice(x.starts[place], x.starts[place + 1]) for place in places.tolist())
        return [x.inputs[each].tobytes() + x.values[each].tobytes() for each in stored]
    chosen = x.take(places).columns() if isinstance(x, HostMatrix) else backend.to_numpy(x[:, places])
    return np.ascontiguousarray(chosen, dtype)


def _digest(excerpts: list[Any]) -> str:
    if isinstance(excerpts[0], list):
        return _short(hashlib.sha256(b"".join(sample for each in excerpts for sample in each)))
    return _short(hashlib.sha256(np.ascontiguousarray(np.concatenate(excerpts, axis=1)).tobytes()))


def _short(digest: Any) -> str:
    text: str = digest.hexdigest()
    return text[:16]
