"""A real tracking server that can be stopped and started again, a proxy before it that fails, and what it has."""

import http.client
import json
import os
import random
import re
import signal
import socket
import sqlite3
import subprocess
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.helpers.servers import free_port, start_mlflow

# All that users see of a run, one query per kind, but for its id, its times and its files.
OF_A_RUN = {
    "status": "SELECT status, lifecycle_stage FROM runs WHERE run_uuid = ?",
    "params": "SELECT key, value FROM params WHERE run_uuid = ?",
    "tags": "SELECT key, value FROM tags WHERE run_uuid = ?",
    "metrics": "SELECT key, step, value FROM metrics WHERE run_uuid = ?",
    "latest": "SELECT key, step, value FROM latest_metrics WHERE run_uuid = ?",
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
    "FROM logged_model_metrics WHERE model_id = ?",
}
# Tags that differ from one recording of the same to the next.
OF_THE_PROCESS = {"twinsqueeze.record", "twinsqueeze.process"}
# How many runs of a recipe were there before.
REPEATED = re.compile(r"\d+ runs? repeated with the same recipe and seed: the newest is used\.")


@dataclass
class Server:
    """`mlflow server` on sqlite, on loopback, always on one port."""

    folder: Path
    environment: dict[str, str]
    port: int = field(default_factory=free_port)
    _process: subprocess.Popen | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        options = ["--host", "127.0.0.1", "--port", str(self.port), "--backend-store-uri", "sqlite:///mlflow.db"]
        self._process = start_mlflow(
            *("server", "--workers", "1", *options),
            folder=self.folder,
            environment=self.environment | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            health=f"{self.uri}/health",
        )

    def stop(self) -> None:
        if self._process:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def query(self, statement: str, *values: str) -> list[tuple]:
        with sqlite3.connect(self.folder / "mlflow.db") as database:
            return sorted(database.execute(statement, values).fetchall())

    def runs(self) -> list[str]:
        return [run_id for (run_id,) in self.query("SELECT run_uuid FROM runs")]

    def contents(self, run_id: str) -> dict[str, object]:
        """All that users see of a run, but for its id, its times and the place of its record."""
        models = self.query("SELECT model_id FROM logged_models WHERE source_run_id = ?", run_id)
        found = {name: self.query(statement, run_id) for name, statement in OF_A_RUN.items()}
        parents = {"mlflow.parentRunId": "the parent"}
        tags = [(k, parents.get(k, REPEATED.sub("", v))) for k, v in found["tags"] if k not in OF_THE_PROCESS]
        places = self.folder / "mlartifacts" / "0"
        files = [
            (name, path.stat().st_size if path.suffix == ".json" else None)
            for name, path in files_in(places / run_id).items()
        ]
        logged = [self._model(model, places / "models" / model / "artifacts") for (model,) in models]
        return found | {"tags": tags, "files": files, "models": logged}

    def _model(self, model_id: str, folder: Path) -> dict[str, object]:
        found = {name: self.query(statement, model_id) for name, statement in OF_A_MODEL.items()}
        weights = (folder / "artifacts" / "compressor.safetensors").read_bytes()
        return found | {"files": list(files_in(folder)), "weights": weights}


def files_in(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


class Faults:
    """What a proxy does with requests: `fault`, which tests change, with all of them."""

    PASS, FAIL, CUT, LOSE, HANG = "pass", "answers 500", "cuts", "takes it and cuts", "hangs"

    def __init__(self) -> None:
        self.fault = self.PASS
        self.done: Counter[str] = Counter()
        self.stop_hanging = threading.Event()
        self._lock = threading.Lock()

    def next(self, kind: str) -> str:
        with self._lock:
            fault = self.choose(kind)
            self.done[fault] += 1
            return fault

    def choose(self, kind: str) -> str:
        return self.fault


class FirstAnswersLost(Faults):
    """The first request of every kind reaches the server, and its answer nobody; of the rest many fail at random."""

    def __init__(self, seed: int, known: Iterable[str] = ()) -> None:
        super().__init__()
        self.kinds = set(known)
        self._random = random.Random(seed)

    def choose(self, kind: str) -> str:
        if kind not in self.kinds:
            self.kinds.add(kind)
            return self.LOSE
        return self._random.choices([self.PASS, self.FAIL, self.CUT, self.LOSE], [88, 4, 4, 4])[0]


def kind_of(method: str, path: str, body: bytes) -> str:
    """What is asked for: of a batch also whether it has metrics, params or tags; files are one kind."""
    path = path.partition("?")[0]
    if "mlflow-artifacts" in path:
        return f"{method} file"
    parts = [part for part in path.split("/") if not any(c.isdigit() for c in part)]
    batch = sorted(name for name, value in json.loads(body).items() if value) if "log-batch" in path else []
    return " ".join([method, *parts, *batch])


@contextmanager
def proxy(port: int, faults: Faults) -> Iterator[str]:
    """The address of a proxy before the server on a port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def handle_one(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fault = faults.next(kind_of(self.command, self.path, body))
            if fault == Faults.FAIL:
                return self.reply(500, b"<html>nothing works</html>", "text/html")
            if fault == Faults.HANG:
                faults.stop_hanging.wait()
            if fault in {Faults.CUT, Faults.HANG}:
                return self.cut()
            upstream = http.client.HTTPConnection("127.0.0.1", port)
            headers = {k: v for k, v in self.headers.items() if k.lower() not in {"host", "connection"}}
            try:
                upstream.request(self.command, self.path, body, headers)
                answer = upstream.getresponse()
                content = answer.read()
            except OSError:
                return self.cut()
            finally:
                upstream.close()
            if fault == Faults.LOSE:
                return self.cut()
            return self.reply(answer.status, content, answer.headers.get("Content-Type", ""))

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_one  # noqa: N815 - as http.server calls them

        def cut(self) -> None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

        def reply(self, status: int, content: bytes, content_type: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        faults.stop_hanging.set()
        server.shutdown()
        server.server_close()
