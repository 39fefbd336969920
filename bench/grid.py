"""Which sizes and which backends are measured."""

from __future__ import annotations

from dataclasses import dataclass

from fusedmlp import available_backends
from fusedmlp.backends import selection

M = tuple(2**k for k in range(10, 21))
N2 = tuple(2**k for k in range(4, 13))
FIXED_M = 2**13
"""m of the sweep over n2."""
FIXED_N2 = 128
"""n2 of the sweep over m."""
GENERAL_N3 = 10
"""n3 of the general `fused_backward`."""


@dataclass(frozen=True)
class Shape:
    """The sizes of one benchmark.

    Parameters
    ----------
    m : int
        Samples.
    n2 : int
        Hidden units.
    n1, n3 : int
        Inputs and outputs.
    dtype : {"float32", "float64"}
    """

    m: int
    n2: int
    n1: int = 64
    n3: int = 1
    dtype: str = "float32"

    @property
    def itemsize(self) -> int:
        """Bytes of one number."""
        return 4 if self.dtype == "float32" else 8

    def __str__(self) -> str:
        return f"m{self.m}-n2_{self.n2}"  # without "=", which pytest's -k does not take


def full_grid(dtype: str = "float32") -> list[Shape]:
    """Every m with every n2."""
    return [Shape(m, n2, dtype=dtype) for n2 in N2 for m in M]


def quick_grid(dtype: str = "float32") -> list[Shape]:
    """A sweep over m at FIXED_N2 and one over n2 at FIXED_M, in steps of 4."""
    over_m = [Shape(m, FIXED_N2, dtype=dtype) for m in M[::2]]
    return over_m + [Shape(FIXED_M, n2, dtype=dtype) for n2 in N2[::2]]


def backends_to_measure() -> list[str]:
    """The backends that `use_backend` or FUSEDMLP_BACKEND name, available or not, else every available one.

    Raises
    ------
    ValueError
        A name is unknown.
    """
    spec, source = selection.specification()
    return available_backends() if source == "default" else selection.parse(spec, source)
