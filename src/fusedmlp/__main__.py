"""``python -m fusedmlp``: the command line, which also runs Python scripts with scikit-learn patched."""

from fusedmlp.cli import main

main(scripts=True)
