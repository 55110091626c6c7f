"""Real servers on loopback, which end with the test."""

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from werkzeug.serving import make_server

logging.getLogger("werkzeug").setLevel(logging.ERROR)


def free_port() -> int:
    """A port of loopback that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextmanager
def serve(application: Callable[..., Any], port: int = 0) -> Iterator[str]:
    """Yields the address of a WSGI server in this process, on a given port or any other."""
    server = make_server("127.0.0.1", port, application, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def mlflow_server(
    backend: str, folder: Path, environment: Mapping[str, str], *options: str, command: str = "server"
) -> Iterator[str]:
    """`mlflow server` (or `ui`) on a database, in a session of its own; yields its address when it answers."""
    folder.mkdir()
    port = free_port()
    arguments = [command, "--host", "127.0.0.1", "--port", str(port), "--backend-store-uri", backend, *options]
    environment = {**environment, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "server.log").open("w") as log:
        streams = {"stdout": log, "stderr": log, "start_new_session": True}
        server = subprocess.Popen([sys.executable, "-m", "mlflow", *arguments], cwd=folder, env=environment, **streams)
    try:
        while not answers(port):
            assert server.poll() is None, (folder / "server.log").read_text()
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def answers(port: int) -> bool:
    try:
        return requests.get(f"http://127.0.0.1:{port}/health", timeout=30).ok
    except requests.RequestException:
        return False


@contextmanager
def postgres_database() -> Iterator[str]:
    """A database in a PostgreSQL cluster of its own, on loopback; yields its address."""
    # Debian keeps PostgreSQL's programs out of the path.
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    initdb = debian[-1] if debian else shutil.which("initdb")
    if initdb is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    folder, port, user = Path(tempfile.mkdtemp(prefix="cluster-")), free_port(), []
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        user = ["runuser", "-u", "postgres", "--"]
        shutil.chown(folder, "postgres")

    def run(program: str, *arguments: str) -> None:
        command = [*user, str(Path(initdb).resolve().with_name(program)), "-D", str(folder / "data"), *arguments]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)

    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
    run("initdb", "-A", "trust", "-U", "mlflow", "--no-sync", "-E", "UTF8")
    run("pg_ctl", "-w", "-l", str(folder / "log"), "-o", options, "start")
    try:
        yield f"postgresql://mlflow@127.0.0.1:{port}/postgres"
    finally:
        run("pg_ctl", "-m", "immediate", "stop")
        shutil.rmtree(folder)
