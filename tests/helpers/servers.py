"""Real servers on loopback, which end with the test."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest


def free_port() -> int:
    """A port of loopback that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def wait_until_healthy(url: str, process: subprocess.Popen, log: Path) -> None:
    """Waits until a server answers; fails with its log if it ends before."""
    while True:
        try:
            with urllib.request.urlopen(url, timeout=30):
                return
        except OSError:
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)


def start_mlflow(*arguments: str, folder: Path, environment: Mapping[str, str], health: str) -> subprocess.Popen:
    """Starts `python -m mlflow` in a session of its own, and waits until the URL `health` answers."""
    folder.mkdir(exist_ok=True)
    log = folder / "server.log"
    with log.open("a") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *arguments],
            cwd=folder,
            env=environment,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    wait_until_healthy(health, process, log)
    return process


@contextmanager
def mlflow_server(
    backend: str, folder: Path, environment: Mapping[str, str], *options: str, command: str = "server"
) -> Iterator[str]:
    """`mlflow server` (or `ui`) on a database; yields its address."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    arguments = [command, "--host", "127.0.0.1", "--port", str(port), "--backend-store-uri", backend, *options]
    environment = {**environment, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    server = start_mlflow(*arguments, folder=folder, environment=environment, health=f"{address}/health")
    try:
        yield address
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@contextmanager
def postgres_database() -> Iterator[str]:
    """A database in a PostgreSQL cluster of its own, on loopback; yields its address."""
    # Debian keeps PostgreSQL's programs out of the path.
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    initdb = debian[-1] if debian else shutil.which("initdb")
    if initdb is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="cluster-"))
    user = []
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        user = ["runuser", "-u", "postgres", "--"]
        shutil.chown(folder, "postgres")

    def run(program: str, *arguments: str) -> None:
        command = [*user, str(Path(initdb).resolve().with_name(program)), "-D", str(folder / "data"), *arguments]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)

    port = free_port()
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
    run("initdb", "-A", "trust", "-U", "mlflow", "--no-sync", "-E", "UTF8")
    run("pg_ctl", "-w", "-l", str(folder / "log"), "-o", options, "start")
    try:
        yield f"postgresql://mlflow@127.0.0.1:{port}/postgres"
    finally:
        run("pg_ctl", "-m", "immediate", "stop")
        shutil.rmtree(folder)
