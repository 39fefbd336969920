"""Threads, their memory, and whose BLAS they call."""
