"""A stand-in for a model: it speaks OpenAI's chat completions and says the same to everything, at a size that is known.

`python -m tracekit.demo.model --port 8124`. It counts a token for each four bytes that it is given, and 100 out or as
many as it may write: as with a real one, no call uses more than what was reserved for it.
"""

from __future__ import annotations

import argparse
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BYTES_PER_TOKEN = 4
MADE = 100
_MOST = 1_048_576


class _Answers(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        """One completion."""
        length = int(self.headers.get("Content-Length") or 0)
        try:
            asked = json.loads(self.rfile.read(min(length, _MOST)))
            model = str(asked["model"])
            given = -(-sum(len(str(one["content"]).encode()) for one in asked["messages"]) // BYTES_PER_TOKEN)
            made = min(MADE, int(asked.get("max_tokens") or MADE))
        except (ValueError, KeyError, TypeError):
            self._send(400, {"error": {"message": "that is no request for a completion"}})
            return
        message = {"role": "assistant", "content": "I am a stand-in, and say this to everybody."}
        usage = {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        self._send(200, {"object": "chat.completion", "model": model, "choices": [choice], "usage": usage})

    def _send(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: who asks knows."""


def main() -> None:
    """Serve until it is stopped."""
    parser = argparse.ArgumentParser(prog="python -m tracekit.demo.model", description=__doc__)
    parser.add_argument("--port", type=int, default=8124, help="0: any free one, which is printed")
    with ThreadingHTTPServer(("127.0.0.1", parser.parse_args().port), _Answers) as server:
        sys.stdout.write(f"http://127.0.0.1:{server.server_port}/v1\n")
        sys.stdout.flush()
        server.serve_forever()


if __name__ == "__main__":
    main()
