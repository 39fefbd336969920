"""The numba-cpu engine against other libraries: ``python -m bench.peers --out DIR``; see bench/peers/README.md."""
