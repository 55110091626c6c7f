"""A local server that answers the Hub's own client with the files of some dataset repositories."""

import json
import re
from contextlib import AbstractContextManager
from pathlib import Path

from werkzeug import Request, Response

from tests.helpers import servers

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ADDRESS = re.compile(r"/(api/)?datasets/([^/?]+/[^/?]+)(?:/(tree|resolve|revision)/[^/?]+/?([^?]*))?")


def serve(folder: Path) -> AbstractContextManager[str]:
    """Yields the URL of a Hub whose repositories are the folders OWNER/NAME."""

    @Request.application
    def answer(request: Request) -> Response:
        match = ADDRESS.match(request.path)
        api, repository, action, path = match.groups() if match else (None, "", None, None)
        root = folder / repository
        if not match or not root.is_dir():
            return reply(b"{}", error="RepoNotFound")
        if api and action == "tree":
            return reply(json.dumps([describe(entry, root) for entry in (root / path).iterdir()]).encode())
        if api:
            files = [{"rfilename": file.relative_to(root).as_posix()} for file in root.rglob("*") if file.is_file()]
            return reply(json.dumps({"id": repository, "sha": COMMIT, "siblings": files}).encode())
        if action == "resolve" and (root / path).is_file():
            return reply((root / path).read_bytes())
        return reply(b"{}", error="EntryNotFound")

    return servers.serve(answer)


def reply(body: bytes, error: str = "") -> Response:
    headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hash(body) & 0xFFFFFFFF:08x}"'}
    return Response(body, 404 if error else 200, headers | ({"X-Error-Code": error} if error else {}))


def describe(path: Path, root: Path) -> dict[str, object]:
    about = {"path": path.relative_to(root).as_posix(), "oid": "0" * 40}
    return about | ({"type": "directory"} if path.is_dir() else {"type": "file", "size": path.stat().st_size})
