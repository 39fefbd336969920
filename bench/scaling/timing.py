"""When an epoch counts."""

from __future__ import annotations

UNDISTURBED, ENOUGH = 0.97, 10
"""The share of an epoch in which a process that is not disturbed computes, or waits busily; epochs that are wanted."""
