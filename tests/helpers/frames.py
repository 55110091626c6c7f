"""Tables as pandas writes them."""

from pathlib import Path

import pandas as pd


def write_frame(frame: pd.DataFrame, path: str | Path) -> None:
    """Writes a table without its index in the format of the suffix: .parquet, .json, .jsonl, .csv or .tsv, or .gz."""
    name = str(path).lower().removesuffix(".gz")
    if name.endswith(".parquet"):
        frame.to_parquet(path)
    elif name.endswith((".json", ".jsonl")):
        frame.to_json(path, orient="records", lines=True, double_precision=15)
    else:
        frame.to_csv(path, index=False, sep="\t" if name.endswith(".tsv") else ",")
