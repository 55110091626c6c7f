"""Metrics, intervals and baselines."""
