"""Tables as pandas writes them, and the rows of any input as the package reads them."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tests.helpers.refusals import refusal
from twinsqueeze.data.row_blocks import read_blocks


def write_frame(frame: pd.DataFrame, path: str | Path) -> None:
    """Writes a table without its index in the format of the suffix: .parquet, .json, .jsonl, .csv or .tsv, or .gz."""
    name = str(path).lower().removesuffix(".gz")
    if name.endswith(".parquet"):
        frame.to_parquet(path)
    elif name.endswith((".json", ".jsonl")):
        frame.to_json(path, orient="records", lines=True, double_precision=15)
    else:
        frame.to_csv(path, index=False, sep="\t" if name.endswith(".tsv") else ",")


def read_rows(source: str, **options: Any) -> list:
    """The texts, or the vectors as lists; options of `read_blocks`."""
    return [row for block in read_blocks(source, **options) for row in np.array(block.rows).tolist()]


def row_refusal(source: str, **options: Any) -> str:
    """Why the rows of an input are refused; options of `read_blocks`."""
    return refusal(read_rows, source, **options)
