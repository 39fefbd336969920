"""Tables larger than memory: read in pieces, and kept as numbers in files that are memory-mapped."""
