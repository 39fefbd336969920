"""Benchmarks: pytest-benchmark suites over backends and sizes, and the report made of their results."""
