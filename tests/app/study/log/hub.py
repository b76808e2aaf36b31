"""A stand-in for the Hub on this machine: as much of its HTTP interface as a dataset of files needs."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

REPO = "me/log"


@dataclass
class Hub:
    """What the stand-in holds. made: whether there is the dataset; asked: what it was asked to make it as."""

    url: str = ""
    private: bool = True
    made: bool = False
    asked: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    uploads: list[str] = field(default_factory=list)
    squashed: int = 0


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """Serves an empty Hub."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def answer(self, body: bytes | object, status: int = 200, **headers: str) -> None:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if not hub.made:
                return self.answer({"error": "none"}, 404, X_Error_Code="RepoNotFound")
            if path == f"/api/datasets/{REPO}":
                return self.answer({"id": REPO, "private": hub.private, "sha": "0" * 40, "siblings": []})
            if path.startswith(f"/api/datasets/{REPO}/tree/"):
                names = sorted(hub.files)
                return self.answer(
                    [{"type": "file", "path": n, "size": len(hub.files[n]), "oid": "0" * 40} for n in names]
                )
            name = path.removeprefix(f"/datasets/{REPO}/resolve/main/")
            if name not in hub.files:
                return self.answer({"error": "none"}, 404, X_Error_Code="EntryNotFound")
            mark = hashlib.sha1(hub.files[name]).hexdigest()
            self.answer(hub.files[name], ETag=f'"{mark}"', X_Repo_Commit="0" * 40)

        do_HEAD = do_GET

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.path == "/api/repos/create":
                hub.asked, hub.made = json.loads(body), True
                return self.answer({"url": f"{hub.url}/datasets/{REPO}"})
            if self.path.startswith(f"/api/datasets/{REPO}/preupload/"):
                files = [{"path": each["path"]} for each in json.loads(body)["files"]]
                plain = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
                return self.answer({"files": [each | plain for each in files]})
            if self.path.startswith(f"/api/datasets/{REPO}/super-squash/"):
                hub.squashed += 1
                return self.answer({})
            for line in body.splitlines():  # a commit
                said = json.loads(line)
                if said["key"] == "file":
                    hub.files[said["value"]["path"]] = base64.b64decode(said["value"]["content"])
                    hub.uploads.append(said["value"]["path"])
            self.answer({"commitOid": "0" * 40, "commitUrl": f"{hub.url}/datasets/{REPO}/commit/0"})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
