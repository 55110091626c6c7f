"""A local server that answers the Hub's own client with the files of some dataset repositories."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


ADDRESS = re.compile(r"/(api/)?datasets/([^/?]+/[^/?]+)(?:/(tree|resolve|revision)/[^/?]+/?([^?]*))?")


class Handler(BaseHTTPRequestHandler):
    """Answers as the Hub does; the server has a folder OWNER/NAME for each repository."""

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        match = ADDRESS.match(self.path)
        api, repository, action, path = match.groups() if match else (None, "", None, None)
        root = self.server.folder / repository
        if not match or not root.is_dir():
            self.reply(b"{}", error="RepoNotFound")
        elif api and action == "tree":
            self.reply(json.dumps([describe(entry, root) for entry in (root / path).iterdir()]).encode())
        elif api:
            files = [{"rfilename": file.relative_to(root).as_posix()} for file in root.rglob("*") if file.is_file()]
            self.reply(json.dumps({"id": repository, "sha": COMMIT, "siblings": files}).encode())
        elif action == "resolve" and (root / path).is_file():
            self.reply((root / path).read_bytes())
        else:
            self.reply(b"{}", error="EntryNotFound")

    do_HEAD = do_GET  # noqa: N815 - as http.server calls it

    def reply(self, body: bytes, error: str = "") -> None:
        self.send_response(404 if error else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hash(body) & 0xFFFFFFFF:08x}"')
        self.send_header("Content-Length", str(len(body)))
        if error:
            self.send_header("X-Error-Code", error)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def describe(path: Path, root: Path) -> dict[str, object]:
    about = {"path": path.relative_to(root).as_posix(), "oid": "0" * 40}
    return about | ({"type": "directory"} if path.is_dir() else {"type": "file", "size": path.stat().st_size})


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Yields the URL of a Hub whose repositories are the folders OWNER/NAME."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.folder = folder
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
