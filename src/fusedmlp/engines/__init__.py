"""Whole passes over samples: the interface of engines, and the engine that works from any backend's primitives."""
