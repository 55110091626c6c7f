"""What users see in a tracking store on SQLite."""

import re
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

# All that users see of a run, one query per kind, except its id, its times and its files.
RUN_QUERIES = {
    "status": "SELECT status, lifecycle_stage FROM runs WHERE run_uuid = ?",
    "params": "SELECT key, value FROM params WHERE run_uuid = ?",
    "tags": "SELECT key, value FROM tags WHERE run_uuid = ?",
    "metrics": "SELECT key, step, value FROM metrics WHERE run_uuid = ? AND key NOT LIKE 'time/%'",
    "latest": "SELECT key, step, value FROM latest_metrics WHERE run_uuid = ? AND key NOT LIKE 'time/%'",
    "inputs": "SELECT d.name, d.digest, d.dataset_source, d.dataset_schema, t.name, t.value "
    "FROM inputs i JOIN datasets d ON d.dataset_uuid = i.source_id "
    "JOIN input_tags t ON t.input_uuid = i.input_uuid WHERE i.destination_id = ?",
    "outputs": "SELECT 1 FROM inputs WHERE source_id = ?",
}
MODEL_QUERIES = {
    "about": "SELECT name, status, lifecycle_stage FROM logged_models WHERE model_id = ?",
    "params": "SELECT param_key, param_value FROM logged_model_params WHERE model_id = ?",
    "tags": "SELECT tag_key, tag_value FROM logged_model_tags WHERE model_id = ?",
    "metrics": "SELECT metric_name, metric_step, metric_value, dataset_name, dataset_digest "
    "FROM logged_model_metrics WHERE model_id = ? AND metric_name NOT LIKE 'time/%'",
}
# Tags that differ from one recording of the same to the next.
PROCESS_TAGS = {"twinsqueeze.record", "twinsqueeze.process"}
# How many runs of a recipe were there before.
REPEATED = re.compile(r"\s*\d+ runs? repeated with the same recipe and seed: the newest is used\.")


def query(folder: Path, statement: str, *values: str) -> list[tuple[Any, ...]]:
    """The sorted rows that a statement finds in the mlflow.db of a folder."""
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        return sorted(database.execute(statement, values).fetchall())


def run_ids(folder: Path) -> set[str]:
    return {run_id for (run_id,) in query(folder, "SELECT run_uuid FROM runs")}


def contents_by_name(folder: Path, ids: Iterable[str]) -> dict[str, dict[str, Any]]:
    """All that users see of runs, except their ids, times and places of records, by their names, which differ."""
    contents = [_run_contents(folder, run_id) for run_id in ids]
    named = {content["tags"]["mlflow.runName"]: content for content in contents}
    assert len(named) == len(contents)
    return named


def _run_contents(folder: Path, run_id: str) -> dict[str, Any]:
    # mlruns, or mlartifacts of a server; created with the first artifact
    artifacts = next(folder.glob("ml*/0"), folder / "mlruns" / "0")
    found: dict[str, Any] = {name: query(folder, statement, run_id) for name, statement in RUN_QUERIES.items()}
    tags = {key: REPEATED.sub("", value) for key, value in found["tags"] if key not in PROCESS_TAGS}
    if "mlflow.parentRunId" in tags:
        tags["mlflow.parentRunId"] = "the parent"
    models = []
    for (model,) in query(folder, "SELECT model_id FROM logged_models WHERE source_run_id = ?", run_id):
        about = {name: query(folder, statement, model) for name, statement in MODEL_QUERIES.items()}
        paths = _files_in(artifacts / "models" / model / "artifacts")
        weights = paths["artifacts/compressor.safetensors"].read_bytes()
        models.append(about | {"files": list(paths), "weights": weights})
    files = _files_in(artifacts / run_id)
    tables = {name: path.read_bytes() for name, path in files.items() if path.suffix in {".json", ".parquet"}}
    return found | {"tags": tags, "files": list(files), "tables": tables, "models": models}


def _files_in(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
