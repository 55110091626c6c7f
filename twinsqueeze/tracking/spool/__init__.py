"""Stores runs on disk first and uploads them in the background, so that a failing tracking store loses nothing."""
