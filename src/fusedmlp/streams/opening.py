"""Which arguments of ``fit`` are streams."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from fusedmlp.checks import shown
from fusedmlp.engines.primitives import Primitives
from fusedmlp.engines.samples import Samples, as_samples
from fusedmlp.model.architecture import Architecture
from fusedmlp.streams.arrays import ArrayStream
from fusedmlp.streams.base import Stream
from fusedmlp.streams.batches import BatchStream
from fusedmlp.streams.mapped import is_mapped
from fusedmlp.streams.samples import StreamedSamples

MAPPED_BYTES = 2**28
"""A memory-mapped X that is larger is read in blocks."""


def samples_of(
    X: Any,
    Y: Any,
    sample_weight: Any,
    architecture: Architecture,
    backend: Primitives,
    batch_size: int,
    prefix: str = "",
) -> Samples:
    """The samples that the arguments of ``fit`` stand for, checked; those of a stream are checked as they are read.

    Parameters
    ----------
    X, Y, sample_weight
        Arrays as for `as_samples`; or X is a stream or an iterable of batches, and the others are None.
    architecture : Architecture
    backend : Primitives
    batch_size : int
    prefix : str
        A prefix of the arguments' names in error messages.

    Raises
    ------
    ValueError
        As `as_samples`; Y is missing, or stands beside a stream.
    """
    stream = _stream_of(X, Y, sample_weight, architecture, batch_size, prefix)
    if stream is None:
        return as_samples(X, Y, sample_weight, architecture, backend, prefix)
    return StreamedSamples(stream, architecture, backend, prefix)


def is_streamed(X: Any, Y: Any) -> bool:
    """Whether X is a stream or an iterable of batches, and no array."""
    return isinstance(X, Stream) or (Y is None and _is_iterable(X))


def _is_iterable(X: Any) -> bool:
    array = isinstance(X, np.ndarray) or hasattr(X, "__array__") or hasattr(X, "__array_interface__")
    return not array and not isinstance(X, str | bytes) and (callable(X) or isinstance(X, Iterable))


def _stream_of(
    X: Any, Y: Any, sample_weight: Any, architecture: Architecture, batch_size: int, prefix: str
) -> Stream | None:
    if is_streamed(X, Y):
        for name, value in (("Y", Y), ("sample_weight", sample_weight)):
            if value is not None:
                raise ValueError(f"{prefix}{name}: expected None beside a stream, which has it; got {shown(value)}")
        return X if isinstance(X, Stream) else BatchStream(X)
    if Y is None:
        raise ValueError(
            f"{prefix}Y: expected an array of targets; only a stream or an iterable of batches comes without"
        )
    large = is_mapped(X) and X.ndim == 2 and X.nbytes > MAPPED_BYTES
    if large and X.shape[0] == architecture.n_inputs and X.shape[1] > batch_size:
        return ArrayStream(X, Y, sample_weight)
    return None
