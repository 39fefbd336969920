"""What `make gpu` last measured, where the package runs from a checkout that holds it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[3] / "bench" / "results"
"""In a checkout; an installed package has no results."""


def lines(folder: Path = FOLDER) -> list[str]:
    """The newest results in a few lines: device and date, then a line per case with its main ratio."""
    found, unreadable = [], []
    for path in sorted(folder.glob("*/gpu.json")):
        try:
            read = json.loads(path.read_text(encoding="utf-8"))
            found.append((read["date"], [f"{read['device']['name']}, {read['date']}", *map(_line, read["summary"])]))
        except (OSError, ValueError, KeyError, TypeError):
            unreadable.append(f"{path.parent.name}/gpu.json cannot be read")
    newest = max(found, default=("", []))[1]
    return [*newest, *unreadable] or ["none in this installation"]


def _line(result: dict[str, Any]) -> str:
    text = f"  {result['case']}: {result['step_seconds'] * 1e3:.3g} ms a step"
    return text + (f", {result['ratio']:.3g} times as fast as {result['against']}" if "ratio" in result else "")
