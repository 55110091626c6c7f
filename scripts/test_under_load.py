"""Runs the tests several times in a row beside busy loops, to show that no test has a deadline.

    python scripts/test_under_load.py [--loops 4] [--runs 3] [ARGUMENTS OF PYTEST ...]

The test command is `python -m pytest` with the arguments. The exit status is 1 if a run fails.
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click

# A loop ends when its standard input is closed, thus also when this script is killed.
BUSY_LOOP = "import select, sys\nwhile not select.select([sys.stdin], [], [], 0)[0]: sum(range(10_000))"


@contextmanager
def busy_loops(count: int) -> Iterator[None]:
    """Keep `count` cores busy."""
    loops = [subprocess.Popen([sys.executable, "-c", BUSY_LOOP], stdin=subprocess.PIPE) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


@click.command(context_settings={"ignore_unknown_options": True}, help=__doc__.partition("\n")[0])
@click.option("--loops", default=4, show_default=True, help="Busy loops beside the tests.")
@click.option("--runs", default=3, show_default=True, help="Runs of the tests in a row.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def main(loops: int, runs: int, arguments: tuple[str, ...]) -> None:
    """Print the wall time and the result of each run."""
    failures = 0
    with busy_loops(loops):
        for number in range(1, runs + 1):
            start = time.perf_counter()
            status = subprocess.run([sys.executable, "-m", "pytest", *arguments], check=False).returncode
            seconds = time.perf_counter() - start
            result = f"failed with exit status {status}" if status else "passed"
            click.echo(f"Run {number} of {runs} beside {loops} busy loops: {result} in {seconds:.0f} s.")
            failures += bool(status)
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
