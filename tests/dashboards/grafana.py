"""A server shaped after Grafana's documented HTTP API for folders and dashboards: Grafana itself does not run here.

https://grafana.com/docs/grafana/latest/developers/http_api/dashboard/, …/folder/. It keeps what it is sent, counts
versions, wants its token, and can be told to refuse as Grafana does.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "glsa_a-token-for-this-test"


@dataclass
class StandIn:
    """What it holds, and what it was asked."""

    url: str = ""
    path: str = ""
    """It serves below this, as with `serve_from_sub_path`."""
    folders: dict[str, dict[str, Any]] = field(default_factory=dict)
    dashboards: dict[str, dict[str, Any]] = field(default_factory=dict)
    """As `GET /api/dashboards/uid/<uid>` answers them."""
    requests: list[tuple[str, str]] = field(default_factory=list)
    refuses: dict[tuple[str, str], tuple[int, Any]] = field(default_factory=dict)
    """Method and path: what is answered in place of the truth."""

    @property
    def writes(self) -> list[tuple[str, str]]:
        """The requests that change something."""
        return [one for one in self.requests if one[0] != "GET"]

    def answer(self, method: str, path: str, token: str, body: Any) -> tuple[int, Any]:
        self.requests.append((method, path))
        if token != f"Bearer {TOKEN}":
            return 401, {"message": "Invalid API key"}
        if (method, path) in self.refuses:
            return self.refuses[method, path]
        match method, path.strip("/").split("/"):
            case "GET", ["api", "folders", uid]:
                return (200, self.folders[uid]) if uid in self.folders else (404, {"message": "folder not found"})
            case "POST", ["api", "folders"]:
                self.folders[body["uid"]] = {**body, "id": 1, "url": f"{self.path}/dashboards/f/{body['uid']}"}
                return 200, self.folders[body["uid"]]
            case "GET", ["api", "dashboards", "uid", uid]:
                found = self.dashboards.get(uid)
                return (200, found) if found else (404, {"message": "Dashboard not found"})
            case "POST", ["api", "dashboards", "db"]:
                return self._save(body)
        return 404, {"message": "Not found"}

    def _save(self, body: Any) -> tuple[int, Any]:
        data, folder = body["dashboard"], body["folderUid"]
        if folder not in self.folders:
            return 400, {"message": "folder not found"}
        before = self.dashboards.get(data["uid"])
        if before and not body["overwrite"]:
            return 412, {"message": "The dashboard has been changed by someone else", "status": "version-mismatch"}
        version = before["dashboard"]["version"] + 1 if before else 1
        number = before["dashboard"]["id"] if before else len(self.dashboards) + 1
        url = f"{self.path}/d/{data['uid']}/{data['uid']}"
        self.dashboards[data["uid"]] = {
            "dashboard": {**data, "id": number, "version": version},
            "meta": {"url": url, "folderUid": folder, "version": version},
        }
        return 200, {"id": number, "uid": data["uid"], "url": url, "status": "success", "version": version}


@contextmanager
def grafana(path: str = "") -> Iterator[StandIn]:
    """One that serves, from `with` to its end."""
    held = StandIn(path=path)

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            answer: Any
            if not self.path.startswith(f"{path}/api/"):
                status, answer = 404, "<html>not here</html>"
            else:
                token = self.headers.get("Authorization", "")
                status, answer = held.answer(self.command, self.path.removeprefix(path), token, body)
            data = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/html" if isinstance(answer, str) else "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = handle_any

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        held.url = f"http://127.0.0.1:{server.server_port}{path}"
        try:
            yield held
        finally:
            server.shutdown()
            thread.join()
