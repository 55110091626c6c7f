"""The command line, with every grid of more than one batch trained in processes, however small."""

from twinsqueeze import fitting
from twinsqueeze.cli import run

if __name__ == "__main__":
    fitting.FEWEST_PAIRS = 0
    run()
