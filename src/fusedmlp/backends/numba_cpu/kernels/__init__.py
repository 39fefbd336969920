"""The arithmetic: what is compiled for a tile of samples, an epoch, and the primitives."""
