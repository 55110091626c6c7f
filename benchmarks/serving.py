"""What a served model does under load: `python -m benchmarks.serving`.

A model is trained for an epoch on the demo, registered, exported and served by `mlflow models serve` on loopback; or
one that is registered already is named. Clients send it valid and invalid requests at once, as fast as it answers. A
valid one must be answered with the vectors that sentence-transformers gives for the exported folder, to 1e-5, an
invalid one with a status from 400 to 499. Memory is what the server's processes hold together, looked at every half
second.
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
from contextlib import contextmanager
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
MOST_TEXTS = 8
INVALID_SHARE = 0.4
# A request takes a fraction of a second; the server itself gives up after a minute.
TIMEOUT = 120
# Before the memory is that of a server at work: every thread has encoded, and every length of text has come.
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
class Tally:
    """What came back, counted by all clients."""

    counts: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    surprises: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, what: str, status: int, surprise: str | None = None) -> None:
        """Counts an answer: right, wrong, refused or answered."""
        with self.lock:
            self.counts[what] += 1
            self.statuses[status] += 1
            if surprise and len(self.surprises) < 5:
                self.surprises.append(surprise)


def valid(generator: random.Random) -> tuple[dict[str, Any], list[str]]:
    """A body in one of the forms that MLflow takes, and its texts."""
    texts = generator.choices(TEXTS, k=generator.randint(1, MOST_TEXTS))
    bodies: list[dict[str, Any]] = [
        {"inputs": texts},
        {"instances": texts},
        {"dataframe_split": {"columns": ["text"], "data": [[text] for text in texts]}},
        {"dataframe_records": [{"text": text} for text in texts]},
    ]
    if len(texts) == 1:
        bodies.append({"inputs": texts[0]})
    return generator.choice(bodies), texts


def invalid(generator: random.Random) -> dict[str, Any]:
    """What `requests` is to send in the place of a valid request."""
    texts = generator.choices(TEXTS, k=generator.randint(0, MOST_TEXTS))
    number = generator.choice([1, -0.5, None, True, float("nan"), 10**400])
    noise: Any = generator.choice([number, ["a"], {"text": "a"}])
    among = [*texts, number]
    generator.shuffle(among)
    bodies: list[Any] = [
        {"inputs": among},
        {"instances": among},
        {"inputs": [1, 2, 3]},
        {"inputs": [None]},
        {"inputs": 5},
        {"inputs": None},
        {"inputs": []},
        {"inputs": {"text": texts}},
        {"inputs": ["\ud800"]},
        {"dataframe_split": {"columns": ["text"], "data": [[noise], *([text] for text in texts)]}},
        {"dataframe_split": {"columns": ["text"]}},
        {"dataframe_split": texts},
        {"dataframe_records": [{"text": 1}, {"text": None}]},
        {"texts": texts},
        {"inputs": texts, "instances": texts},
        {},
        texts,
        "text",
    ]
    raw = [b"", b"{", b'{"inputs": ["a"', b"\xff\xfe", b'{"inputs": ["\xff"]}', b"text\n"]
    whole = [
        {"data": generator.choice(raw), "headers": {"Content-Type": JSON}},
        {"data": b'{"inputs": ["a"]}', "headers": {"Content-Type": "text/plain"}},
        {"data": b'{"inputs": ["a"]}', "headers": {"Content-Type": f"{JSON}; charset=latin-1"}},
        {"data": b"text\n5\n", "headers": {"Content-Type": "text/csv"}},
    ]
    body = {"data": json.dumps(generator.choice(bodies)), "headers": {"Content-Type": JSON}}
    return generator.choice([body, body, body, generator.choice(whole)])


def client(url: str, seed: int, end: float, expected: dict[str, np.ndarray], tally: Tally) -> None:
    """Sends requests until the time is over."""
    generator = random.Random(seed)  # noqa: S311 - which requests are sent is no secret
    with requests.Session() as session:
        while time.monotonic() < end:
            if generator.random() < INVALID_SHARE:
                sent = invalid(generator)
                answer = session.post(url, timeout=TIMEOUT, **sent)
                refused = 400 <= answer.status_code < 500
                surprise = None if refused else f"{answer.status_code} to {str(sent)[:200]}: {answer.text[:200]}"
                tally.add("refused" if refused else "answered", answer.status_code, surprise)
                continue
            body, texts = valid(generator)
            answer = session.post(url, json=body, timeout=TIMEOUT)
            surprise = _difference(answer, np.stack([expected[text] for text in texts]))
            tally.add("wrong" if surprise else "right", answer.status_code, surprise)


def _difference(answer: requests.Response, expected: np.ndarray) -> str | None:
    if answer.status_code != 200:
        return f"{answer.status_code}: {answer.text[:300]}"
    found = np.array(answer.json()["predictions"], np.float32)
    if found.shape != expected.shape:
        return f"vectors of shape {found.shape}, not {expected.shape}"
    difference = float(np.abs(found - expected).max())
    return None if difference <= TOLERANCE else f"vectors that differ by {difference:.2g}"


def memory(server: psutil.Process) -> float:
    """MB that a server's processes hold together."""
    total = 0
    for process in (server, *server.children(recursive=True)):
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total / 1e6


@contextmanager
def served(model: str, folder: Path, environment: dict[str, str]) -> Iterator[tuple[psutil.Process, str]]:
    """`mlflow models serve` on a free port of loopback; yields its process and address."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
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
        for _ in range(600):
            try:
                requests.get(f"http://127.0.0.1:{port}/ping", timeout=5).raise_for_status()
                break
            except requests.RequestException:
                if server.poll() is not None:
                    raise click.ClickException((folder / "server.log").read_text()[-2000:]) from None
                time.sleep(0.5)
        yield psutil.Process(server.pid), f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def load(url: str, clients: int, seconds: float, expected: dict[str, np.ndarray], look: Callable[[], float]) -> Tally:
    """Lets the clients work, and looks at the memory meanwhile; prints both."""
    tally = Tally()
    begin = time.monotonic()
    threads = [
        threading.Thread(target=client, args=(url, seed, begin + seconds, expected, tally)) for seed in range(clients)
    ]
    for thread in threads:
        thread.start()
    held: list[tuple[float, float]] = []
    while any(thread.is_alive() for thread in threads):
        held.append((time.monotonic() - begin, look()))
        time.sleep(0.5)
    warm = [size for passed, size in held if passed > WARM_UP_SHARE * seconds]
    report(tally, clients, seconds, warm)
    return tally


def report(tally: Tally, clients: int, seconds: float, held: Sequence[float]) -> None:
    """Prints what was counted; the memory at the start is the median of a tenth of the looks, as that at the end."""
    tenth = max(len(held) // 10, 1)
    start, end = float(np.median(held[:tenth])), float(np.median(held[-tenth:]))
    counts = tally.counts
    statuses = ", ".join(f"{count:,} with {status}" for status, count in sorted(tally.statuses.items()))
    print(f"{clients} clients for {seconds:.0f} s: {counts.total():,} requests, {statuses}")
    print(f"valid:   {counts['right']:,} right, {counts['wrong']:,} wrong")
    print(f"invalid: {counts['refused']:,} refused with 4xx, {counts['answered']:,} answered otherwise")
    print(f"memory:  {start:,.0f} MB after the warm-up, {end:,.0f} MB at the end, at most {max(held):,.0f} MB")
    for surprise in tally.surprises:
        print(f"not as it should be: {surprise}")


@click.command()
@click.option("--seconds", default=120.0, show_default=True, help="How long requests are sent.")
@click.option("--clients", default=8, show_default=True, help="How many send them at once.")
@click.option("--model", help="A registered model, in the store of MLFLOW_TRACKING_URI.  [default: one that is made]")
def main(seconds: float, clients: int, model: str | None) -> None:
    """Prints requests served, those that were right, wrong and refused, and the server's memory."""
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
        with served(model, folder, environment) as (server, url):
            tally = load(url, clients, seconds, expected, lambda: memory(server))
    sys.exit(1 if tally.counts["wrong"] or tally.counts["answered"] else 0)


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
