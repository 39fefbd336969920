"""Hooks of mkdocs: formulas become MathML, which needs no script from elsewhere; files that pages name are copied."""

from __future__ import annotations

import re
import shutil
from html import unescape
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
_COPIED = "bench/results", "bench/README.md", "examples"


def on_page_content(html: str, **_: Any) -> str:
    """The page with `pymdownx.arithmatex`'s formulas, which are LaTeX, converted."""
    return _FORMULA.sub(
        lambda formula: convert(unescape(formula[2]), display="inline" if formula[1] == "span" else "block"), html
    )


def on_post_build(config: Any, **_: Any) -> None:
    """Charts, tables and scripts outside of docs/ come to where the pages look for them."""
    root, site = Path(config.config_file_path).parent, Path(config.site_dir)
    for name in _COPIED:
        source, target = root / name, site / name
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
