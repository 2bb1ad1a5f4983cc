"""A server on loopback that W&B's client takes for W&B: runs may start and stream, until it misbehaves."""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class StandIn(ThreadingHTTPServer):
    """Answers GraphQL and file streams.

    Args:
        harm: what happens ("refuses", "hangs", "closes", or "" for nothing).
        at: the request from which on it happens to all: "start" or "stream".
    """

    daemon_threads = True

    def __init__(self, harm: str = "", at: str = "stream") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.harm, self.at, self.harmed = harm, at, False
        self.streamed: list[str] = []
        self.history: dict[str, list[Any]] = {}  # of each run, by its id
        self.upserts: list[dict[str, Any]] = []  # what was said of runs
        self.agent_commands: list[dict[str, Any]] = []  # for `wandb agent`, one at each of its calls
        self.sweep_config = ""
        self.over = threading.Event()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def end(self) -> None:
        self.over.set()
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: StandIn

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        streams, server = self.path.endswith("/file_stream"), self.server
        server.harmed |= bool(server.harm) and (streams or server.at == "start")
        if server.harmed:
            self._harm()
        elif streams:
            server.streamed.append(body.decode())
            self._keep_history(self.path.split("/")[-2], json.loads(body))
            self._answer({"exitcode": None, "limits": {}})
        elif self.path.endswith("/graphql"):
            self._answer({"data": self._data(json.loads(body))})
        else:
            self._answer({})

    def _keep_history(self, run: str, body: dict[str, Any]) -> None:
        """Write lines from their offset on, over what is there."""
        history, part = self.server.history.setdefault(run, []), body.get("files", {}).get("wandb-history.jsonl", {})
        lines = [json.loads(line) for line in part.get("content", [])]
        history[part.get("offset", 0) : part.get("offset", 0) + len(lines)] = lines

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("content-length") or 0))
        self._answer({})

    def _harm(self) -> None:
        if self.server.harm == "refuses":
            self._answer({"errors": [{"message": "unauthorized"}]}, 401)
        elif self.server.harm == "hangs":
            self.server.over.wait()
        else:
            self.close_connection = True

    def _data(self, asked: dict[str, Any]) -> dict[str, Any]:
        given = asked.get("variables") or {}
        found = re.match(r"\s*(?:query|mutation)\s+(\w+)", asked["query"])
        if found and found[1] == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.server.url}/{name}"} for name in given["files"]]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        if found and found[1] == "SweepWithRuns":
            return {"project": {"sweep": {"id": "s", "config": self.server.sweep_config, "runs": {"edges": []}}}}
        if found and found[1] == "CreateAgent":
            return {"createAgent": {"agent": {"id": "agent"}}}
        if found and found[1] == "Heartbeat":
            commands, idle = self.server.agent_commands, json.loads(given["runState"]) == {}
            now = [commands.pop(0) if commands else {"type": "exit"}] if idle else []
            return {"agentHeartbeat": {"agent": {"id": "agent"}, "commands": json.dumps(now)}}
        if found and found[1] == "UpsertBucket":
            self.server.upserts.append(given)
        project = {"id": "p", "name": "sft_lab", "entity": {"id": "e", "name": "me"}}
        bucket = {"id": "b", "name": given.get("name"), "displayName": "d", "project": project, "historyLineCount": 0}
        return {
            "viewer": {"id": "v", "entity": "me", "username": "me", "teams": {"edges": []}, "flags": "{}"},
            "serverInfo": {"cliVersionInfo": {"max_cli_version": "99.0", "min_cli_version": "0.1"}, "features": []},
            "upsertBucket": {"bucket": bucket, "inserted": True},
            "model": {"bucket": None},
            "project": {"bucket": None, "run": None, "artifact": None},
            "createArtifact": {
                "artifact": {
                    "id": "a",
                    "digest": "d",
                    "state": "COMMITTED",
                    "aliases": [],
                    "artifactSequence": {"id": "s", "latestArtifact": None},
                }
            },
        }

    def _answer(self, content: dict[str, Any], code: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
