"""What users see in a tracking store on SQLite."""

import re
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

# All that users see of a run, one query per kind, except its id, its times and its files.
OF_A_RUN = {
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
OF_A_MODEL = {
    "about": "SELECT name, status, lifecycle_stage FROM logged_models WHERE model_id = ?",
    "params": "SELECT param_key, param_value FROM logged_model_params WHERE model_id = ?",
    "tags": "SELECT tag_key, tag_value FROM logged_model_tags WHERE model_id = ?",
    "metrics": "SELECT metric_name, metric_step, metric_value, dataset_name, dataset_digest "
    "FROM logged_model_metrics WHERE model_id = ? AND metric_name NOT LIKE 'time/%'",
}
# Tags that differ from one recording of the same to the next.
OF_THE_PROCESS = {"twinsqueeze.record", "twinsqueeze.process"}
# How many runs of a recipe were there before.
REPEATED = re.compile(r"\d+ runs? repeated with the same recipe and seed: the newest is used\.")


def query(folder: Path, statement: str, *values: str) -> list[tuple[Any, ...]]:
    """The sorted rows that a statement finds in the mlflow.db of a folder."""
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        return sorted(database.execute(statement, values).fetchall())


def run_ids(folder: Path) -> set[str]:
    return {run_id for (run_id,) in query(folder, "SELECT run_uuid FROM runs")}


def run_contents(folder: Path, run_id: str) -> dict[str, Any]:
    """All that users see of a run, except its id, its times and the place of its record."""
    # mlruns, or mlartifacts of a server; created with the first artifact
    artifacts = next(folder.glob("ml*/0"), folder / "mlruns" / "0")
    found: dict[str, Any] = {name: query(folder, statement, run_id) for name, statement in OF_A_RUN.items()}
    parents = {"mlflow.parentRunId": "the parent"}
    tags = [(k, parents.get(k, REPEATED.sub("", v))) for k, v in found["tags"] if k not in OF_THE_PROCESS]
    files = files_in(artifacts / run_id)
    models = []
    for (model,) in query(folder, "SELECT model_id FROM logged_models WHERE source_run_id = ?", run_id):
        paths = files_in(artifacts / "models" / model / "artifacts")
        weights = paths["artifacts/compressor.safetensors"].read_bytes()
        about = {name: query(folder, statement, model) for name, statement in OF_A_MODEL.items()}
        models.append(about | {"files": list(paths), "weights": weights})
    tables = {name: path.read_bytes() for name, path in files.items() if path.suffix in {".json", ".parquet"}}
    return found | {"tags": tags, "files": list(files), "tables": tables, "models": models}


def contents_by_name(folder: Path, ids: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The contents of runs by their names, which differ."""
    contents = [run_contents(folder, run_id) for run_id in ids]
    named = {dict(content["tags"])["mlflow.runName"]: content for content in contents}
    assert len(named) == len(contents)
    return named


def files_in(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
