"""Compresses files of vectors or texts."""
