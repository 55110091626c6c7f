"""Stores a run's records on disk and uploads them in the background."""
