"""A small HTTP server: keeps what it is sent, answers what it is told to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import SimpleQueue
from threading import Thread
from typing import Any


class Received:
    """What was posted and asked for, with the headers of the latter; `answer` is a status and a body."""

    def __init__(self) -> None:
        self.posted: SimpleQueue[bytes] = SimpleQueue()
        self.asked: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.answer: tuple[int, bytes] = (200, b"[]")


@contextmanager
def serving(received: Received) -> Iterator[str]:
    """Serve on a free port of 127.0.0.1; the URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.posted.put(self.rfile.read(int(self.headers["Content-Length"])))
            self._answer()

        def do_GET(self) -> None:
            received.asked.append(self.path)
            received.headers.append({name.lower(): value for name, value in self.headers.items()})
            self._answer()

        def _answer(self) -> None:
            status, body = received.answer
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
