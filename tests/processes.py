"""Code in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import textwrap


def run_python(code, environment):
    """What a fresh Python prints; warnings are errors."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()
