"""A local server that serves the files of one dataset repository to the Hub's own client."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def handler(repository: str, folder: Path) -> type[BaseHTTPRequestHandler]:
    """Return a handler that answers as the Hub does for the files in `folder`."""

    class Hub(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            path = self.path.partition("?")[0]
            api = f"/api/datasets/{repository}"
            files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
            if path == api:
                return self.reply(json.dumps(self.about(files)).encode())
            if path.startswith(f"{api}/revision/"):
                return self.reply(json.dumps(self.about(files)).encode())
            if path.startswith(f"{api}/tree/{COMMIT}"):
                return self.reply(json.dumps(self.tree(files, path.removeprefix(f"{api}/tree/{COMMIT}"))).encode())
            prefix = f"/datasets/{repository}/resolve/"
            name = path.removeprefix(prefix).partition("/")[2]
            if path.startswith(prefix) and name in files:
                return self.reply(files[name].read_bytes())
            return self.reply(b"{}", status=404)

        def about(self, files: dict[str, Path]) -> dict[str, object]:
            return {"id": repository, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}

        def tree(self, files: dict[str, Path], under: str) -> list[dict[str, object]]:
            under = under.strip("/")
            inside = {n: p for n, p in files.items() if n.startswith(f"{under}/" if under else "")}
            rest = {n.removeprefix(f"{under}/") if under else n: (n, p) for n, p in inside.items()}
            rows: list[dict[str, object]] = []
            for short, (name, path) in rest.items():
                if "/" not in short:
                    rows.append({"type": "file", "path": name, "size": path.stat().st_size, "oid": "0" * 40})
            folders = {short.partition("/")[0] for short in rest if "/" in short}
            return rows + [{"type": "directory", "path": f"{under}/{f}".strip("/"), "oid": "0" * 40} for f in folders]

        def reply(self, body: bytes, status: int = 200) -> None:
            self.send_response(status)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hash(body) & 0xFFFFFFFF:08x}"')
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Type", "application/json")
            if status == 404:
                self.send_header("X-Error-Code", "EntryNotFound" if "/resolve/" in self.path else "RepoNotFound")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    return Hub


@contextmanager
def serve(repository: str, folder: Path) -> Iterator[str]:
    """Yield the URL of a Hub with one repository."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(repository, folder))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
