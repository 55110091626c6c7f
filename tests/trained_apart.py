"""The command line, with every grid of more than one batch trained in processes, however small."""

from twinsqueeze.cli import run
from twinsqueeze.training import worker_pool

if __name__ == "__main__":
    worker_pool.FEWEST_PAIRS = 0
    run()
