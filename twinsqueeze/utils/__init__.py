"""Helpers that know nothing of embeddings: files, caches, text, console, signals, processes, device and threads."""
