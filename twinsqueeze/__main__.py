"""`python -m twinsqueeze`, which MLproject's entry points call."""

from twinsqueeze.cli import run

run()
