"""The CUDA sources: where they are, their text and their hashes.

In an installed wheel they are in ``fusedmlp/kernels``; in a checkout, on PYTHONPATH or installed editable, in
``kernels/`` at its top.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache
from pathlib import Path

from fusedmlp.backends.cupy import cuda_tables

_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"]+)"[ \t]*$', re.MULTILINE)


@cache
def folder() -> Path:
    """The folder with the CUDA sources.

    Raises
    ------
    FileNotFoundError
        There is none: the installation is damaged.
    """
    here = Path(__file__).resolve()
    package = here.parents[2]
    candidates = (package / "kernels", package.parents[1] / "kernels")
    for candidate in candidates:
        if any(candidate.glob("*.cu")):
            return candidate
    raise FileNotFoundError(
        f"the CUDA sources of fusedmlp are missing: expected *.cu in {candidates[0]} (installed) or {candidates[1]} "
        "(checkout); install the package again"
    )


def names() -> list[str]:
    """The file names of the kernels, e.g. "activations.cu", without the headers."""
    return sorted(path.name for path in folder().glob("*.cu"))


def source(name: str) -> str:
    """The complete text of a kernel file, which a compiler needs and a cache may use as its key.

    Each ``#include "..."`` line is replaced by the header's text, once per header. (CuPy's cache looks at the text
    that it is given, not at the headers that it names: a changed header would go unnoticed.)

    Parameters
    ----------
    name : str
        One of `names`.

    Raises
    ------
    FileNotFoundError
        No such file; the message lists those that are there.
    """
    return _inlined(name, set())


def hashes() -> dict[str, str]:
    """File name -> SHA-256 in hexadecimal, for every .cu and .cuh file and the generated header."""
    files = sorted(path.name for path in folder().iterdir() if path.suffix in (".cu", ".cuh"))
    return {name: hashlib.sha256(_read(name).encode()).hexdigest() for name in [*files, cuda_tables.HEADER]}


def _inlined(name: str, seen: set[str]) -> str:
    seen.add(name)
    text = _read(name)

    def header(match: re.Match[str]) -> str:
        return "" if match[1] in seen else _inlined(match[1], seen)

    return _INCLUDE.sub(header, text)


def _read(name: str) -> str:
    if name == cuda_tables.HEADER:
        return cuda_tables.header()
    path = folder() / name
    if not path.is_file():
        raise FileNotFoundError(f"no CUDA source {name!r} in {folder()}; there are: {', '.join(hashes())}")
    return path.read_text(encoding="utf-8")
