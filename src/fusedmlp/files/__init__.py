"""Model files, and writing files such that nothing is ever half-written."""
