"""``python -m fusedmlp``: the command line."""

from fusedmlp.cli import main

main()
