"""Passes over samples in chunks: the size of a chunk, its buffers, and the reaction when device memory runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from functools import partial
from typing import Any, TypeVar

from fusedmlp.engines.feeding import Feeder, HostMatrix, Part
from fusedmlp.engines.primitives import Primitives
from fusedmlp.engines.sparse import SparseMatrix
from fusedmlp.model.activations import Array
from fusedmlp.model.architecture import Architecture

SMALLEST_CHUNK = 256
"""Samples. With fewer, a GPU has too little work, and memory is short for another reason than the chunk."""

Result = TypeVar("Result")

_log = logging.getLogger("fusedmlp")


class Chunking:
    """The buffers and the chunk size that an engine keeps between passes.

    Parameters
    ----------
    backend : Primitives
    architecture : Architecture
    """

    def __init__(self, backend: Primitives, architecture: Architecture) -> None:
        self.backend, self.architecture = backend, architecture
        # Per sample: A_l and dZ_l of every layer behind the input, and a gathered x.
        numbers = 2 * sum(architecture.layer_sizes[1:]) + architecture.n_inputs
        self._sample_bytes = numbers * architecture.itemsize
        self._chunk = max(SMALLEST_CHUNK, backend.workspace_bytes // self._sample_bytes)
        self._buffers: dict[str, Array] = {}
        self._feeder: Feeder | None = None

    def _chunks(self, m: int) -> Iterator[slice]:
        return slices(0, m, self._chunk)

    def _buffer(self, name: str, shape: tuple[int, int]) -> Array:
        """A reused (n, columns) array: a piece of one flat allocation that grows to the largest chunk seen."""
        size = shape[0] * shape[1]
        if name not in self._buffers or self._buffers[name].size < size:
            self._buffers.pop(name, None)  # before the new one is made: there may not be room for both
            self._buffers[name] = self.backend.empty((size,), self.architecture.dtype)
        return self._buffers[name][:size].reshape(shape)

    @contextmanager
    def passes_in(self, buffers: dict[str, Array]) -> Iterator[None]:
        """Let passes use `buffers` inside of the block. No pass outside of it enlarges, and so moves, them."""
        own, self._buffers = self._buffers, buffers
        try:
            yield
        finally:
            self._buffers = own

    def _take_all(self, matrices: Sequence[Array | None], samples: slice | Array) -> list[Any]:
        """Columns of matrices on the device: views for a slice; else copies, which are valid until the next call."""
        if isinstance(samples, slice):
            return [columns(x, samples) for x in matrices]
        rooms = [partial(self._buffer, f"taken{i}") for i in range(len(matrices))]
        return [x if x is None else self._take(x, samples, room) for x, room in zip(matrices, rooms, strict=True)]

    def _take(self, x: Array, samples: Array, room: Callable[[tuple[int, int]], Array]) -> Any:
        return x[:, samples] if isinstance(x, SparseMatrix) else self.backend.take_samples(x, samples, room)

    def _parts(
        self, matrices: Sequence[Array | None], chunks: Iterator[slice], order: Array | None = None
    ) -> AbstractContextManager[Iterator[Part]]:
        """The matrices chunk by chunk, on the device. The feeder brings those that stay in host memory.

        Parameters
        ----------
        matrices : sequence of array, `HostMatrix` or None
            All in the same kind of memory; the first is not None.
        chunks : iterator of slices
        order : array of shape (m,) of int, optional
            The samples to take, for matrices on the device; the chunks are slices of it.
        """
        if not isinstance(matrices[0], HostMatrix):
            where = ((chunk, chunk if order is None else order[chunk]) for chunk in chunks)
            return nullcontext((chunk, self._take_all(matrices, samples)) for chunk, samples in where)
        if self._feeder is None:
            self._feeder = self.backend.feeder()
            self._announce([x for x in matrices if x is not None])
        return closing(self._feeder.feed(matrices, list(chunks)))

    def _announce(self, matrices: Sequence[HostMatrix]) -> None:
        _log.info(
            "%s (%s) stay in main memory and are fed in chunks of %s samples: %s are free on the GPU",
            "X and Y" if len(matrices) > 1 else "the samples of X",
            byte_text(sum(x.nbytes for x in matrices)),
            f"{min(self._chunk, matrices[0].shape[1]):,}",
            byte_text(self.backend.free_bytes()),
        )

    # When memory runs out --------------------------------------------------------------------------------------------

    def _with_room(self, run: Callable[[], Result], samples: int) -> Result:
        """Call `run()`. If the device's memory runs out, halve the chunk and call it again.

        Parameters
        ----------
        run : callable
            When it is called again, it must not repeat steps that it has completed.
        samples : int
            The largest number of samples that it would take at a time.

        Raises
        ------
        MemoryError
            The chunk is as small as it gets.
        """
        while True:
            try:
                return run()
            except self.backend.memory_errors as error:
                if min(self._chunk, samples) <= SMALLEST_CHUNK:
                    message = self._no_room(min(self._chunk, samples), error)
                    self._release()
                    raise MemoryError(message) from error
            # Only here has the error let go of the frames that it came through, and of their arrays.
            self._release()
            before, self._chunk = min(self._chunk, samples), max(SMALLEST_CHUNK, min(self._chunk, samples) // 2)
            _log.warning(
                "the GPU's memory ran out: chunks of %s samples in place of %s from now on, which changes the last "
                "digits of sums; %s are free",
                f"{self._chunk:,}",
                f"{before:,}",
                byte_text(self.backend.free_bytes()),
            )

    def _release(self) -> None:
        """Free the device memory whose contents are not needed between passes."""
        self._buffers.clear()
        if self._feeder is not None:
            self._feeder.release()
        self.backend.release_memory()

    def _no_room(self, samples: int, error: BaseException) -> str:
        a = self.architecture
        needed, parameters = byte_text(samples * self._sample_bytes), byte_text(a.n_parameters * a.itemsize)
        return (
            f"the GPU's memory ran out with chunks of only {samples} samples: layers {list(a.layer_sizes)} in "
            f"{a.dtype} need {needed} for those and {parameters} for each copy of the parameters; "
            f"{byte_text(self.backend.free_bytes())} are free ({error})"
        )


def slices(start: int, stop: int, step: int) -> Iterator[slice]:
    """Slices of `step`, the last maybe smaller, from `start` to `stop`."""
    for first in range(start, stop, step):
        yield slice(first, min(first + step, stop))


def columns(x: Array | None, samples: slice) -> Array | None:
    """A view of some columns; of None, None."""
    return None if x is None else x[:, samples]


def byte_text(n_bytes: int | None) -> str:
    """ "78.6 GB", "1.2 MB" or, of less than 0.1 MB, "345 bytes", in powers of 1000."""
    if n_bytes is None:
        return "unknown bytes"
    return (
        f"{n_bytes / 1e9:.1f} GB"
        if n_bytes >= 1e9
        else f"{n_bytes / 1e6:.1f} MB"
        if n_bytes >= 1e5
        else f"{n_bytes} bytes"
    )
