"""A server of the parts of the Hugging Face Hub's API that an upload uses; it keeps what it is given in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

TOKEN = "hf_a_token_of_nobody"


@dataclass
class FakeHub:
    """The state of the server.

    Attributes:
        address: for ``HF_ENDPOINT``.
        repositories: name -> file name -> content, of what was committed.
        private: of each repository.
        requests: method and path of every request.
        blobs: large files by SHA-256, uploaded before they are committed.
        fails: the status of requests whose address has a part of this name.
        address_of_commits: in answers; that of this server by default.
    """

    address: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    blobs: dict[str, bytes] = field(default_factory=dict)
    fails: dict[str, int] = field(default_factory=dict)
    address_of_commits: str | None = None

    def answer(self, path: str, body: bytes) -> tuple[int, Any]:
        """Return status and JSON of a POST."""
        parts = path.partition("?")[0].strip("/").split("/")
        for part in parts:
            if part in self.fails:  # with what was sent, as a hostile server would
                return self.fails[part], {"error": f"Bearer {TOKEN} \x1b[31m", "url": path}
        if parts[:2] == ["api", "validate-yaml"]:
            return 200, {"errors": [], "warnings": []}
        if parts == ["api", "repos", "create"]:
            return self._create(json.loads(body))
        if parts[-3:] == ["lfs", "objects", "batch"]:
            return 200, self._batch(json.loads(body))
        if parts[:2] == ["api", "models"] and parts[4] == "preupload":
            return 200, {"files": [self._mode(file) for file in json.loads(body)["files"]]}
        if parts[:2] == ["api", "models"] and parts[4] == "commit":
            return self._commit("/".join(parts[2:4]), body)
        return 404, {"error": f"no such address: {path}"}

    def _create(self, wanted: dict[str, Any]) -> tuple[int, Any]:
        name = "/".join(part for part in (wanted.get("organization"), wanted["name"]) if part)
        if name in self.repositories:
            return 409, {"error": "exists", "url": f"{self.address}/{name}"}
        self.repositories[name] = {}
        self.private[name] = bool(wanted.get("private") or wanted.get("visibility") == "private")
        return 200, {"url": f"{self.address}/{name}", "name": name, "id": name}

    @staticmethod
    def _mode(file: dict[str, Any]) -> dict[str, Any]:
        large = file["path"].endswith((".safetensors", ".npz"))
        return {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}

    def _batch(self, wanted: dict[str, Any]) -> dict[str, Any]:
        uploads = {each["oid"]: {"href": f"{self.address}/blobs/{each['oid']}"} for each in wanted["objects"]}
        objects = [{**each, "actions": {"upload": uploads[each["oid"]]}} for each in wanted["objects"]]
        return {"transfer": "basic", "objects": objects}

    def _commit(self, name: str, body: bytes) -> tuple[int, Any]:
        for line in body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                self.repositories[name][value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                self.repositories[name][value["path"]] = self.blobs[value["oid"]]
        address = self.address_of_commits or f"{self.address}/{name}/commit/"
        return 200, {"commitUrl": f"{address}{'0' * 40}", "commitOid": "0" * 40}


class _Handler(BaseHTTPRequestHandler):
    hub: ClassVar[FakeHub]
    protocol_version = "HTTP/1.1"

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _reply(self, status: int, content: Any) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self) -> None:
        body = self._body()
        self.hub.requests.append(f"POST {self.path}")
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._reply(401, {"error": "Invalid username or password."})
        else:
            self._reply(*self.hub.answer(self.path, body))

    def do_PUT(self) -> None:
        body = self._body()
        self.hub.requests.append(f"PUT {self.path}")
        oid = self.path.rpartition("/")[2]
        if hashlib.sha256(body).hexdigest() == oid:
            self.hub.blobs[oid] = body
        self._reply(200 if oid in self.hub.blobs else 400, {})

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """Serve a hub on this machine in the block."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
