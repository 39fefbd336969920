"""The command line. Importing it imports nothing else."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line on the arguments of this process."""
    try:
        from fusedmlp.cli.commands import cli
    except KeyboardInterrupt:  # once imported, the group handles interrupts
        if sys.stderr is not None:
            sys.stderr.write("fusedmlp: interrupted\n")
        sys.exit(130)
    cli.main(prog_name="fusedmlp")
