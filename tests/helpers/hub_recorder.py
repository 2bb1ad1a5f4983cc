"""A loopback server with the endpoints that the Hub's real client calls to publish; it keeps what it was sent.

What no stand-in can show: the Hub's own checks, and its Xet storage, whose client is turned off.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_standInTokenOfNobody"


class StandIn(ThreadingHTTPServer):
    """Keeps repositories in memory and every request: method, path, headers, body."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        self.private: dict[str, bool] = {}
        self.large: dict[str, bytes] = {}
        self.files: dict[str, bytes] = {}
        self.commits = 0
        self.refuses: int | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self.serve_forever)
        self._thread.start()

    def end(self) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    server: StandIn

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""

    def _answer(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size)
        self.server.requests.append((self.command, self.path, dict(self.headers), body))
        status, content = self._content(self.path.partition("?")[0], body)
        sent = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    do_GET = do_POST = do_PUT = _answer  # noqa: N815

    def _content(self, path: str, body: bytes) -> tuple[int, Any]:  # noqa: C901 - a branch for each endpoint
        hub = self.server
        if hub.refuses:
            return hub.refuses, {"error": "not today"}
        if path.startswith("/upload/"):
            assert hashlib.sha256(body).hexdigest() == path.removeprefix("/upload/")
            hub.large[path.removeprefix("/upload/")] = body
            return 200, {}
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            place = {"url": f"{hub.url}/{'datasets/' if asked['type'] == 'dataset' else ''}{name}"}
            if name in hub.private:
                return 409, {"error": "You already created this repo", **place}
            hub.private[name] = asked["visibility"] == "private"
            return 200, place
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if found := re.fullmatch(r"/api/(?:models|datasets)/(\w+/\w+)", path):
            return 200, {"id": found[1], "private": hub.private[found[1]], "siblings": [], "tags": []}
        if path.endswith("/preupload/main"):
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(("parquet", "safetensors")) else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for file in json.loads(body)["files"]
            ]
            return 200, {"files": modes}
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**one, "actions": {"upload": {"href": f"{hub.url}/upload/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            return 200, {"transfer": "basic", "objects": objects}
        if path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    hub.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                if line["key"] == "lfsFile":
                    hub.files[line["value"]["path"]] = hub.large[line["value"]["oid"]]
            hub.commits += 1
            return 200, {"commitUrl": f"{hub.url}/me/mine/commit/{'0' * 40}", "commitOid": "0" * 40}
        return 404, {"error": f"the stand-in has no {path}"}
