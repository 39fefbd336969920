"""The command line. Importing it imports nothing else."""

from __future__ import annotations

import sys


def main(scripts: bool = False) -> None:
    """Run the command line on the arguments of this process.

    Parameters
    ----------
    scripts : bool, default False
        Whether a word that is no command may be a Python script, as for ``python -m fusedmlp``.
    """
    try:
        from fusedmlp.cli.commands import COMMANDS, cli
        from fusedmlp.cli.script import run, target_of

        target = target_of(sys.argv[1:], set(COMMANDS)) if scripts else None
    except KeyboardInterrupt:  # once imported, the group handles interrupts
        if sys.stderr is not None:
            sys.stderr.write("fusedmlp: interrupted\n")
        sys.exit(130)
    if target is not None:
        run(target)
    else:
        from fusedmlp.cli.output import allow_every_character

        allow_every_character()
        cli.main(prog_name="fusedmlp")
