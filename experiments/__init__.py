"""Experiments and what came of them; LOG.md is their journal."""
