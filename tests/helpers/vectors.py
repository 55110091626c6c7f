"""Vectors, and files of them by other programs."""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq


def unit_vectors(rows: int, dimension: int, seed: int = 0) -> np.ndarray:
    return unit_rows(np.random.default_rng(seed).standard_normal((rows, dimension), dtype=np.float32))


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def compress(weights: Mapping[str, np.ndarray], vectors: np.ndarray) -> np.ndarray:
    """The unit vectors that the layers of an mlp make, computed with NumPy."""
    for i in (0, 2, 4):
        vectors = (np.maximum(vectors, 0) if i else vectors) @ weights[f"{i}.weight"].T + weights[f"{i}.bias"]
    return unit_rows(vectors)


def npy_bytes(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def as_lists(vectors: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])


def write_rows(path: Path, rows: np.ndarray | list[str]) -> None:
    """Writes vectors or texts in the format of the suffix; tables have a column `row` and others."""
    is_text = isinstance(rows, list)
    if path.suffix == ".npy":
        np.save(path, rows)
    elif path.suffix == ".txt":
        path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        table = pa.table({"id": range(len(rows)), "row": list(rows), "title": ["x"] * len(rows)})
        pq.write_table(table, path, row_group_size=2000)
    elif path.suffix == ".csv" and not is_text:
        np.savetxt(path, rows, delimiter=",", fmt="%.9g")
    else:
        frame = pd.DataFrame(
            {"id": range(len(rows)), "row": rows if is_text else list(rows.astype(float)), "note": "-"}
        )
        if path.suffix == ".csv":
            frame.to_csv(path, index=False)
        else:
            frame.to_json(path, orient="records", lines=True, force_ascii=False, double_precision=15)
