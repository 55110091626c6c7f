"""Load test of a served model: `python -m benchmarks.serving`.

By default a model is trained for one epoch on the demo data, registered, exported and served by `mlflow models serve`
on the loopback interface; `--model` serves a registered model instead. Several clients send valid and invalid requests
as fast as they are answered. A valid request must return the vectors that sentence-transformers computes with the
exported folder, within 1e-5; an invalid request must return a status from 400 to 499. The resident memory of the
server's processes is sampled every half second.
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import psutil
import requests
from sentence_transformers import SentenceTransformer

ROOT = Path(__file__).parent.parent
CHAMPION = "models:/twinsqueeze@champion"
TOLERANCE = 1e-5
MAX_TEXTS = 8
INVALID_SHARE = 0.4
# Seconds; the server's own timeout is a minute.
TIMEOUT = 120
# Share of the time after which every thread has encoded texts of every length, and memory is stable.
WARM_UP_SHARE = 0.25
TEXTS = [
    "A man plays the guitar.",
    "Someone makes music.",
    "My sister buys tea",
    "",
    "  two   spaces ",
    "Zwei Hunde laufen durch den Schnee.",
    "日本語 🙂 עברית",
    "line\nbreak\ttab\u0000nul",
    "<b>bold</b> & 'quoted' \"twice\" \\u0041",
    "word " * 100,
]
JSON = "application/json"


@dataclass
class ResponseCounts:
    """Responses counted by outcome and by HTTP status, shared by all clients.

    Outcomes are "correct" and "wrong" for valid requests, "rejected" and "not rejected" for invalid ones.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, outcome: str, status: int, failure: str | None = None) -> None:
        """Count a response; the report shows the first five failures."""
        with self.lock:
            self.outcomes[outcome] += 1
            self.statuses[status] += 1
            if failure and len(self.failures) < 5:
                self.failures.append(failure)


def valid_request(generator: random.Random) -> tuple[dict[str, Any], list[str]]:
    """Return a JSON body of a list of texts or of a single text, and its texts."""
    texts = generator.choices(TEXTS, k=generator.randint(1, MAX_TEXTS))
    return {"inputs": texts[0] if len(texts) == 1 and generator.random() < 0.5 else texts}, texts


def invalid_request(generator: random.Random) -> dict[str, Any]:
    """Return the arguments `data` and `headers` of a request that the server must reject."""
    texts = generator.choices(TEXTS, k=generator.randint(0, MAX_TEXTS))
    number = generator.choice([1, -0.5, None, True, float("nan"), 10**400])
    not_text: Any = generator.choice([number, ["a"], {"text": "a"}])
    mixed = [*texts, number]
    generator.shuffle(mixed)
    bodies: list[Any] = [
        {"inputs": mixed},
        {"inputs": [["a"]]},
        {"instances": mixed},
        {"inputs": [1, 2, 3]},
        {"inputs": [None]},
        {"inputs": 5},
        {"inputs": None},
        {"inputs": []},
        {"inputs": {"text": texts}},
        {"inputs": ["\ud800"]},
        {"dataframe_split": {"columns": ["text"], "data": [[not_text], *([text] for text in texts)]}},
        {"dataframe_split": {"columns": ["text"], "data": [[text] for text in texts]}},
        {"dataframe_split": texts},
        {"dataframe_records": [{"text": 1}, {"text": None}]},
        {"texts": texts},
        {},
        texts,
        "text",
    ]
    malformed = [b"", b"{", b'{"inputs": ["a"', b"\xff\xfe", b'{"inputs": ["\xff"]}', b"text\n"]
    other = [
        {"data": generator.choice(malformed), "headers": {"Content-Type": JSON}},
        {"data": b'{"inputs": ["a"]}', "headers": {"Content-Type": "text/plain"}},
        {"data": b'{"inputs": ["a"]}', "headers": {"Content-Type": f"{JSON}; charset=latin-1"}},
        {"data": b"text\nNA\n", "headers": {"Content-Type": "text/csv"}},
    ]
    body = {"data": json.dumps(generator.choice(bodies)), "headers": {"Content-Type": JSON}}
    return generator.choice([body, body, body, generator.choice(other)])


def send_requests(url: str, seed: int, end: float, expected: dict[str, np.ndarray], counts: ResponseCounts) -> None:
    """Send requests until the time `end` of the monotonic clock."""
    generator = random.Random(seed)  # noqa: S311 - not used for security
    with requests.Session() as session:
        while time.monotonic() < end:
            if generator.random() < INVALID_SHARE:
                request = invalid_request(generator)
                response = session.post(url, timeout=TIMEOUT, **request)
                status = response.status_code
                rejected = 400 <= status < 500
                failure = None if rejected else f"{status} to {str(request)[:200]}: {response.text[:200]}"
                counts.add("rejected" if rejected else "not rejected", status, failure)
                continue
            body, texts = valid_request(generator)
            response = session.post(url, json=body, timeout=TIMEOUT)
            failure = _find_error(response, np.stack([expected[text] for text in texts]))
            counts.add("wrong" if failure else "correct", response.status_code, failure)


def _find_error(response: requests.Response, expected: np.ndarray) -> str | None:
    if response.status_code != 200:
        return f"{response.status_code}: {response.text[:300]}"
    vectors = np.array(response.json()["predictions"], np.float32)
    if vectors.shape != expected.shape:
        return f"vectors of shape {vectors.shape}, expected {expected.shape}"
    difference = float(np.abs(vectors - expected).max())
    return None if difference <= TOLERANCE else f"vectors differ by {difference:.2g}"


def resident_memory(server: psutil.Process) -> float:
    """Return the resident memory of a server and its child processes, in MB."""
    total = 0
    for process in (server, *server.children(recursive=True)):
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total / 1e6


@contextmanager
def serve_model(model: str, folder: Path, environment: dict[str, str]) -> Iterator[tuple[psutil.Process, str]]:
    """Run `mlflow models serve` on a free local port; yield its process and the URL for requests."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["models", "serve", "-m", model, "--env-manager", "local", "--host", "127.0.0.1", "-p", str(port)]
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *command],
            cwd=folder,
            env={name: value for name, value in environment.items() if name != "PYTHONPATH"},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        while not _answers(f"http://127.0.0.1:{port}/ping"):
            if server.poll() is not None:
                raise click.ClickException((folder / "server.log").read_text()[-2000:])
            time.sleep(0.5)
        yield psutil.Process(server.pid), f"http://127.0.0.1:{port}/invocations"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def _answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).ok
    except requests.RequestException:
        return False


def run_load(
    url: str, clients: int, seconds: float, expected: dict[str, np.ndarray], get_memory: Callable[[], float]
) -> ResponseCounts:
    """Let the clients send requests, sample the memory meanwhile, and print a report."""
    counts = ResponseCounts()
    start = time.monotonic()
    threads = [
        threading.Thread(target=send_requests, args=(url, seed, start + seconds, expected, counts))
        for seed in range(clients)
    ]
    for thread in threads:
        thread.start()
    samples: list[tuple[float, float]] = []
    while any(thread.is_alive() for thread in threads):
        samples.append((time.monotonic() - start, get_memory()))
        time.sleep(0.5)
    print_report(counts, clients, seconds, [mb for passed, mb in samples if passed > WARM_UP_SHARE * seconds])
    return counts


def print_report(counts: ResponseCounts, clients: int, seconds: float, memory: Sequence[float]) -> None:
    """Print the counts, and the memory in MB: medians of the first and of the last tenth of the samples."""
    tenth = max(len(memory) // 10, 1)
    start, end = float(np.median(memory[:tenth])), float(np.median(memory[-tenth:]))
    outcomes = counts.outcomes
    statuses = ", ".join(f"{count:,} with {status}" for status, count in sorted(counts.statuses.items()))
    print(f"{clients} clients for {seconds:.0f} s: {outcomes.total():,} requests, {statuses}")
    print(f"valid:   {outcomes['correct']:,} correct, {outcomes['wrong']:,} wrong")
    print(f"invalid: {outcomes['rejected']:,} rejected with 4xx, {outcomes['not rejected']:,} not rejected")
    print(f"memory:  {start:,.0f} MB after the warm-up, {end:,.0f} MB at the end, maximum {max(memory):,.0f} MB")
    for failure in counts.failures:
        print(f"failure: {failure}")


@click.command()
@click.option("--seconds", default=120.0, show_default=True, help="Duration of the test.")
@click.option("--clients", default=8, show_default=True, help="Number of concurrent clients.")
@click.option("--model", help="URI of a registered model in the store of MLFLOW_TRACKING_URI.  [default: train one]")
def main(seconds: float, clients: int, model: str | None) -> None:
    """Print how many requests were answered correctly, wrongly and rejected, and the server's memory."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        if model is None:
            environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
            _run(["train", "--dataset", "demo", "--epochs", "1"], folder, environment)
            _run(["register"], folder, environment)
            model = CHAMPION
        _run(["export", "--model", model, "--output", str(folder / "model")], folder, environment)
        encoder = SentenceTransformer(str(folder / "model"), device="cpu")
        expected = {text: encoder.encode([text])[0] for text in TEXTS}
        with serve_model(model, folder, environment) as (server, url):
            counts = run_load(url, clients, seconds, expected, lambda: resident_memory(server))
    sys.exit(1 if counts.outcomes["wrong"] or counts.outcomes["not rejected"] else 0)


def _run(command: list[str], folder: Path, environment: dict[str, str]) -> None:
    subprocess.run(
        [sys.executable, "-m", "twinsqueeze", *command],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        check=True,
    )


if __name__ == "__main__":
    main()
