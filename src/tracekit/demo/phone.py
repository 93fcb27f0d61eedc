"""A stand-in for ntfy: it takes what is published to it as ntfy does, and keeps it, as the operator's phone would."""

from __future__ import annotations

import json
import secrets
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

_LONGEST = 65_536


class NtfyStandIn:
    """This is not ntfy: it serves on this machine only, and shows no one anything. `messages` grows while it serves."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self._came = threading.Condition()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="ntfy", daemon=True)

    @property
    def url(self) -> str:
        """Where it serves."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def take(self, message: dict[str, Any]) -> None:
        """One more message."""
        with self._came:
            self.messages.append(message)
            self._came.notify_all()

    def wait_for(self, task_id: str, *, timeout: float) -> dict[str, Any] | None:
        """The last message about a task that has buttons, or None if none comes in time."""
        deadline = time.monotonic() + timeout
        with self._came:
            while True:
                for message in self.messages[::-1]:
                    if message.get("sequence_id") == task_id and message.get("actions"):
                        return message
                left = deadline - time.monotonic()
                if left <= 0:
                    return None
                self._came.wait(left)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler(phone: NtfyStandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """Publishing as JSON, which is POST to the root."""

        protocol_version = "HTTP/1.1"
        timeout = 10

        def do_POST(self) -> None:
            """Take a message and answer as ntfy does."""
            try:
                size = min(int(self.headers.get("Content-Length", "0")), _LONGEST)
                message = json.loads(self.rfile.read(size))
            except ValueError:
                self._answer(400, {"code": 40017, "http": 400, "error": "invalid request: body must be JSON"})
                return
            phone.take(message)
            stamp = int(time.time())
            answer = {"id": secrets.token_hex(6), "time": stamp, "event": "message", "topic": message.get("topic")}
            self._answer(200, answer)

        def _answer(self, status: int, value: dict[str, Any]) -> None:
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: the demo tells the story."""

    return Handler
