"""Prints what a benchmark measures, and collects it for `benchmarks.all`."""

import csv
import os
import statistics
from collections.abc import Sequence
from pathlib import Path

# Environment variable: the CSV file that `report` appends to.
FILE = "BENCHMARK_RESULTS"


def report(what: str, values: Sequence[float], unit: str, digits: int = 2) -> None:
    """Prints the median and the range of a measurement over rounds."""
    low, high = min(values), max(values)
    measured = f"{statistics.median(values):,.{digits}f} {unit}"
    if len(values) > 1:
        measured += f" ({low:,.{digits}f} to {high:,.{digits}f})"
    print(f"{what}: {measured}", flush=True)
    if path := os.environ.get(FILE):
        with Path(path).open("a", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow([what, measured, len(values)])
