"""Samples that are read while a training goes on: from files larger than memory, or from an iterator of batches."""
