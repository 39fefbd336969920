"""What a GPU can do, as far as the times of kernels depend on it: rates of one that was measured, and of others."""

from __future__ import annotations

from typing import NamedTuple

from fusedmlp.checks import check_choice

# Of an NVIDIA H200 (driver 580.159, CuPy 14.2), measured: a copy moves this share of what the memory's clock and the
# width of its bus allow; large products by cuBLAS reach these shares of what the clock allows.
_SHARE_OF_BUS, _SHARE_OF_FMA, _SHARE_OF_TENSOR_CORES = 0.84, 0.764, 0.816

# By the compute capability from which on they hold: FP32 lanes, FP64 lanes, TF32 flops a cycle of a multiprocessor.
_MULTIPROCESSORS = {
    70: (64, 32, 0),
    75: (64, 2, 0),
    80: (64, 32, 1024),
    86: (128, 2, 256),
    90: (128, 64, 2048),
    100: (128, 64, 4096),
    120: (128, 2, 256),
}

_MMA_SYNC = 1270
"""Flops a cycle of a multiprocessor that ``mma.sync`` reaches in TF32 at most, on GPUs whose full rate other
instructions have: 62 % of an H100's, as published; it was not measured here."""


class Card(NamedTuple):
    """A GPU. Rates are those that programs reach, not those of data sheets."""

    name: str
    measured: bool
    """Whether its rates were measured. Those of other cards follow from their properties (`derived`)."""
    compute_capability: int
    """90 is 9.0."""
    multiprocessors: int
    shared_bytes: int
    """The most shared memory of a block."""
    copy: float
    """Bytes per second, read and written, of a copy in device memory."""
    strict: float
    """Flops per second of large products in strict float32."""
    tf32: float
    """The same with TF32; 0 without tensor cores for it."""
    float64: float
    """Flops per second in float64, without tensor cores."""

    @property
    def has_tf32(self) -> bool:
        """Whether the tensor cores multiply float32 numbers rounded to TF32."""
        return self.compute_capability >= 80

    @property
    def has_async_copies(self) -> bool:
        """Whether copies from global to shared memory run while a thread goes on."""
        return self.compute_capability >= 80

    @property
    def has_clusters(self) -> bool:
        """Whether blocks run in clusters."""
        return self.compute_capability >= 90

    @property
    def lanes(self) -> int:
        """FP32 lanes of a multiprocessor."""
        return _lanes(self.compute_capability)[0]

    @property
    def clock(self) -> float:
        """Cycles per second of a multiprocessor, those in which a large product keeps every lane busy."""
        return self.strict / (2 * self.lanes * self.multiprocessors)

    @property
    def splits_pay(self) -> bool:
        """Whether three products in TF32 take less time than one in float32."""
        return self.has_tf32 and self.tf32 > 3 * self.strict

    @property
    def mma_rate(self) -> float:
        """Flops a cycle of a multiprocessor, in TF32, of the kernels' own products (``mma.sync``)."""
        return min(self.tf32 / (self.multiprocessors * self.clock), _MMA_SYNC)

    def product_rate(self, arithmetic: str) -> float:
        """Flops per second of large products by cuBLAS in "float32", "tf32" or "float64"."""
        return {"float32": self.strict, "tf32": self.tf32, "float64": self.float64}[arithmetic]

    def cublas_arithmetic(self, precision: str, dtype: str) -> str:
        """What cuBLAS's products of a network in this dtype compute in: "float32", "tf32" or "float64"."""
        return "tf32" if precision == "medium" and dtype == "float32" and self.has_tf32 else dtype

    def arithmetics(self, precision: str, dtype: str) -> tuple[str, ...]:
        """What the narrow and resident kernels may compute products of a network in, where the fastest is taken.

        Parameters
        ----------
        precision : {"strict", "high", "medium"}
        dtype : {"float32", "float64"}

        Returns
        -------
        tuple of {"float32", "tf32", "tf32x3", "float64"}
            "tf32x3": three products in TF32 for one, within 2e-6 of it.
        """
        if dtype == "float32" and precision == "high" and self.splits_pay:
            return "tf32x3", "float32"
        return (self.cublas_arithmetic(precision, dtype),)


def derived(
    name: str,
    compute_capability: int,
    multiprocessors: int,
    shared_bytes: int,
    clock: float,
    memory_clock: float,
    bus_bits: int,
) -> Card:
    """A card that was not measured: the shares of its peaks that an H200 reaches.

    Parameters
    ----------
    name : str
    compute_capability : int
        90 is 9.0.
    multiprocessors, shared_bytes : int
    clock, memory_clock : float
        In Hz, as CUDA tells them: memory moves two bits of every line of the bus per cycle. Where CUDA tells 0, as in
        some virtual machines, an H200's rates of a multiprocessor are taken.
    bus_bits : int
    """
    lanes, doubles, tf32 = _lanes(compute_capability)
    if not (clock and memory_clock and bus_bits):
        clock, memory_clock, bus_bits = 1.98e9, 3.201e9, round(6144 * multiprocessors / 132)
    cycles = multiprocessors * clock
    return Card(
        name, False, compute_capability, multiprocessors, shared_bytes,
        copy=_SHARE_OF_BUS * 2 * memory_clock * bus_bits / 8,
        strict=_SHARE_OF_FMA * 2 * lanes * cycles,
        tf32=_SHARE_OF_TENSOR_CORES * tf32 * cycles,
        float64=_SHARE_OF_FMA * 2 * doubles * cycles,
    )  # fmt: skip


def _lanes(compute_capability: int) -> tuple[int, int, int]:
    """(FP32 lanes, FP64 lanes, TF32 flops a cycle) of a multiprocessor; the oldest known one's where it is older."""
    since = max((known for known in _MULTIPROCESSORS if known <= compute_capability), default=min(_MULTIPROCESSORS))
    return _MULTIPROCESSORS[since]


H200 = Card("NVIDIA H200", True, 90, 132, 227 * 1024, 4.135e12, 51.1e12, 436.9e12, 25.6e12)
"""Measured, but for float64, which is the FMA share of its peak."""

CARDS = {
    "h200": H200,
    "h100": derived("NVIDIA H100 SXM", 90, 132, 227 * 1024, 1.98e9, 2.619e9, 5120),
    "a100": derived("NVIDIA A100 80GB", 80, 108, 163 * 1024, 1.41e9, 1.593e9, 5120),
    "rtx4090": derived("NVIDIA GeForce RTX 4090", 89, 128, 99 * 1024, 2.52e9, 10.501e9, 384),
    "l4": derived("NVIDIA L4", 89, 58, 99 * 1024, 2.04e9, 6.251e9, 192),
    "t4": derived("NVIDIA T4", 75, 40, 64 * 1024, 1.59e9, 5.001e9, 256),
}
"""Cards by short names."""


def card_named(name: str) -> Card:
    """One of `CARDS`; another name is a ValueError."""
    return CARDS[check_choice("card", name, CARDS)]


def card_of(properties: Card) -> Card:
    """The measured card of that name and number of multiprocessors if there is one, else `properties` as they are."""
    for card in CARDS.values():
        if card.measured and card.name in properties.name and card.multiprocessors == properties.multiprocessors:
            return card
    return properties
