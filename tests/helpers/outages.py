"""A proxy before a tracking server, which answers or fails as a test says."""

import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle

import requests
from werkzeug import Request, Response

from tests.helpers.servers import serve

PASS, FAIL, CUT, LOSE, HANG = "passes", "answers 500", "cuts", "takes it and cuts", "hangs"


class Faults:
    """What a proxy does with requests: `choose`, which tests replace, says it for each kind of request."""

    def __init__(self, choose: Callable[[str], str] = lambda kind: PASS) -> None:
        self.choose = choose
        self.counts: Counter[str] = Counter()
        self.stop_hanging = threading.Event()


class LoseFirstAnswers:
    """Loses the first answer to every kind of request that is not known; of the rest, three in 25 fail."""

    def __init__(self, *known: str) -> None:
        self.kinds = set(known)
        self._others = cycle([PASS] * 22 + [FAIL, CUT, LOSE])

    def __call__(self, kind: str) -> str:
        if kind in self.kinds:
            return next(self._others)
        self.kinds.add(kind)
        return LOSE


def kind_of(request: Request) -> str:
    """What is asked for: of a batch also whether it has metrics, params or tags; files are one kind."""
    if "mlflow-artifacts" in request.path:
        return f"{request.method} file"
    parts = [part for part in request.path.split("/") if not any(c.isdigit() for c in part)]
    batch = sorted(name for name, value in request.json.items() if value) if "log-batch" in parts else []
    return " ".join([request.method, *parts, *batch])


@contextmanager
def proxy(server: str, faults: Faults, port: int = 0) -> Iterator[str]:
    """The address of a proxy before a server, on a given port or any other."""

    @Request.application
    def forward(request: Request) -> Response:
        fault = faults.choose(kind_of(request))
        faults.counts[fault] += 1
        if fault == FAIL:
            return Response("<html>nothing works</html>", 500, content_type="text/html")
        if fault == HANG:
            faults.stop_hanging.wait()
        if fault in {PASS, LOSE}:
            headers = {name: value for name, value in request.headers.items() if name not in {"Host", "Connection"}}
            url, content = server + request.environ["REQUEST_URI"], request.get_data()
            answer = requests.request(request.method, url, data=content, headers=headers, timeout=600)
            if fault == PASS:
                return Response(answer.content, answer.status_code, content_type=answer.headers.get("Content-Type"))
        request.environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        return Response()

    with serve(forward, port) as address:
        yield address
        faults.stop_hanging.set()
