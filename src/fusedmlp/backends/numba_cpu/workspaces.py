"""The memory of an engine's workers: the record of the network, and a workspace for each of them."""

from __future__ import annotations

from collections.abc import Callable

from fusedmlp.backends.numba_cpu import layout
from fusedmlp.backends.numba_cpu.kernels import passes
from fusedmlp.backends.numba_cpu.kernels.inputs import NONZEROS_BYTES
from fusedmlp.backends.numba_cpu.kernels.random_masks import HASH_BYTES
from fusedmlp.backends.numba_cpu.machine.buffers import AlignedArray
from fusedmlp.backends.numba_cpu.machine.records import WorkerRecord, written
from fusedmlp.model.architecture import Architecture

# A tile that takes longer than this is left in its middle when a run is to end.
_LONG_TILE_NS = 5_000_000


class Workspaces:
    """The records that compiled code reads, made when they are first needed, and kept with what they refer to.

    Parameters
    ----------
    architecture : Architecture
    gemm : int
        Address of a Fortran gemm of the architecture's dtype.
    sample_ns : float
        How long a sample takes.
    dropout : bool
        Whether tiles have masks.
    """

    def __init__(self, architecture: Architecture, gemm: int, sample_ns: float, dropout: bool) -> None:
        self.layout = layout.lay_out(architecture, dropout)
        self._architecture = architecture
        self._make: Callable[[], tuple[AlignedArray, AlignedArray]] = lambda: layout.network_record(
            architecture, self.layout, gemm, dropout, sample_ns * self.layout.tile > _LONG_TILE_NS
        )
        self._network: AlignedArray | None = None
        self._layers: AlignedArray | None = None
        self._kept: list[list[AlignedArray]] = []
        self._workers = AlignedArray(0, "int64")

    @property
    def ready(self) -> bool:
        """Whether everything is compiled."""
        return self._network is not None

    def compile(self) -> int:
        """Compile what there is to be; where `passes.work` starts."""
        self._network, self._layers = self._make()
        return passes.passes(self._architecture.dtype).work

    @property
    def network(self) -> int:
        """Address of the `NetworkRecord`."""
        assert self._network is not None
        return self._network.address

    def workers(self, count: int) -> AlignedArray:
        """The addresses of the records of so many workers, the leader's first."""
        while len(self._kept) < count:
            a, tile = self._architecture, self.layout.tile
            blocks = [
                AlignedArray(self.layout.end // a.itemsize, a.dtype),
                AlignedArray(tile, "float64"),
                AlignedArray(tile, "int64"),
                AlignedArray(tile * HASH_BYTES // 8, "int64"),
                AlignedArray(tile * NONZEROS_BYTES // 8, "int64"),
            ]
            places = dict(zip(WorkerRecord._fields, (block.address for block in blocks), strict=False))
            record = written(WorkerRecord(**places, leader=int(not self._kept)))
            self._kept.append([record, *blocks])
            self._workers = AlignedArray(len(self._kept), "int64")
            self._workers.numbers[:] = [record.address for record, *_ in self._kept]
        return self._workers
