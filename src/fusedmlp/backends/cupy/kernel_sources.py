"""The CUDA sources: where they lie, their text and their hashes. Standard library only.

In an installed wheel they are in ``fusedmlp/kernels``; in a checkout, on PYTHONPATH or installed editable, in
``kernels/`` at its top.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache
from pathlib import Path

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
    """The file names of the kernels, e.g. "sigmoid.cu"; headers are not among them."""
    return sorted(path.name for path in folder().glob("*.cu"))


def source(name: str) -> str:
    """The complete text of a kernel file: what a compiler needs, and what a cache may use as its key.

    Our own headers are put in the place of their ``#include "..."`` lines, each once. (CuPy's cache looks at the text
    it is given and not at the headers it names: a changed header would go unnoticed.)

    Parameters
    ----------
    name : str
        A file name that `names` lists.

    Raises
    ------
    FileNotFoundError
        No such file; the message lists those that are there.
    """
    return _inlined(name, set())


def hashes() -> dict[str, str]:
    """File name -> SHA-256 in hexadecimal, for every .cu and .cuh file."""
    files = sorted(path for path in folder().iterdir() if path.suffix in (".cu", ".cuh"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _inlined(name: str, seen: set[str]) -> str:
    seen.add(name)
    text = _read(name)

    def header(match: re.Match[str]) -> str:
        return "" if match[1] in seen else _inlined(match[1], seen)

    return _INCLUDE.sub(header, text)


def _read(name: str) -> str:
    path = folder() / name
    if not path.is_file():
        raise FileNotFoundError(f"no CUDA source {name!r} in {folder()}; there are: {', '.join(hashes())}")
    return path.read_text(encoding="utf-8")
