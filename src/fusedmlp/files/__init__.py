"""Model files, and writing files so that a reader never finds one half-written."""
