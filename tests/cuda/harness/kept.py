"""Files that compilers made, kept between runs of the tests and found by the text that they were made of."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

FOLDER = Path(__file__).parents[3] / ".pytest_cache" / "compiled"


def kept(parts, make):
    """The path of the file that ``make(path)`` writes, made only where there is none yet for the same `parts`."""
    path = FOLDER / hashlib.sha256("\0".join(parts).encode()).hexdigest()
    if not path.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
        make(unfinished)
        os.replace(unfinished, path)
    return path
