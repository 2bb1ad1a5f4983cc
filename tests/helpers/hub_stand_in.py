"""A server on loopback that the Hub's client takes for the Hub: it has the files of one repository."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "a" * 40


class HubStandIn(ThreadingHTTPServer):
    """Serves a folder as ``me/tiny``; with ``hangs`` it takes every request and answers none."""

    daemon_threads = True

    def __init__(self, folder: Path, *, hangs: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.hangs, self.over = folder, hangs, threading.Event()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def end(self) -> None:
        self.over.set()
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: HubStandIn

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._serve(with_body=False)

    def do_GET(self) -> None:
        self._serve(with_body=True)

    def _serve(self, *, with_body: bool) -> None:
        if self.server.hangs:
            self.server.over.wait()
            return
        place = self.path.partition("?")[0]
        file = self.server.folder / place.rpartition("/")[2]
        if place.startswith("/me/tiny/resolve/") and file.is_file():
            body, code = file.read_bytes(), 200
        elif place in ("/api/models/me/tiny", "/api/models/me/tiny/revision/main"):
            files = [{"rfilename": one.name} for one in sorted(self.server.folder.iterdir())]
            body, code = json.dumps({"id": "me/tiny", "sha": COMMIT, "siblings": files, "tags": []}).encode(), 200
        else:
            body, code = b"{}", 404
        self.send_response(code)
        if code == 404:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)
