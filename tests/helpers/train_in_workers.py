"""The command line with worker processes for every grid of more than one batch, however small."""

from twinsqueeze.cli import run
from twinsqueeze.training import parallel

if __name__ == "__main__":
    parallel.MIN_PAIRS_FOR_POOL = 0
    run()
