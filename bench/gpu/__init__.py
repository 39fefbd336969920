"""Verification and benchmark on an NVIDIA GPU: ``python -m bench.gpu``; see bench/gpu/README.md."""
