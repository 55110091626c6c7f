"""A real tracking server that can be stopped and started again, and a proxy before it that fails."""

import http.client
import json
import random
import socket
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

from werkzeug import Request, Response

from tests.helpers.servers import free_port, mlflow_server, serve


class Server:
    """`mlflow server` on SQLite that can be stopped and started again; always on one port."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.port, self._running = folder, free_port(), ExitStack()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._options = ("sqlite:///mlflow.db", folder, environment, "--workers", "1")

    def start(self) -> None:
        self._running.enter_context(mlflow_server(*self._options, port=self.port))

    def stop(self) -> None:
        self._running.close()


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

    @Request.application
    def forward(request: Request) -> Response:
        method, path, body = request.method, request.environ["REQUEST_URI"], request.get_data()
        fault = faults.next(kind_of(method, path, body))
        if fault == Faults.FAIL:
            return Response("<html>nothing works</html>", 500, content_type="text/html")
        if fault == Faults.HANG:
            faults.stop_hanging.wait()
        if fault not in {Faults.CUT, Faults.HANG}:
            headers = {name: value for name, value in request.headers.items() if name not in {"Host", "Connection"}}
            with closing(http.client.HTTPConnection("127.0.0.1", port)) as upstream, suppress(OSError):
                upstream.request(method, path, body, headers)
                answer = upstream.getresponse()
                response = Response(answer.read(), answer.status, content_type=answer.headers.get("Content-Type"))
                if fault != Faults.LOSE:
                    return response
        request.environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        return Response()

    with serve(forward) as address:
        yield address
        faults.stop_hanging.set()
