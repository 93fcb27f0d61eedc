"""A server that speaks OpenAI's chat completions as far as a test wants it to, over real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

DONE = "[DONE]"
BREAK = "break"
"""In a stream: the connection is cut."""
HANG = "hang"
"""In a stream, or alone: nothing more comes."""


class ModelServer:
    """Answers each request with `status` and `body`, or with `chunks` as a stream. What was asked is in `requests`."""

    def __init__(self) -> None:
        self.status = 200
        self.body: Any = answer("hello", {"prompt_tokens": 10, "completion_tokens": 20})
        self.chunks: Sequence[Any] | None = None
        self.requests: list[dict[str, Any]] = []
        self.asked = asyncio.Event()
        self.held: asyncio.Event | None = None
        """What an answer waits for."""
        self.url = ""

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[ModelServer]:
        serving: set[asyncio.Task[None]] = set()

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(self._serve(reader, writer))
            serving.add(task)
            task.add_done_callback(serving.discard)

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        try:
            yield self
        finally:
            server.close()
            for task in serving:
                task.cancel()
            await asyncio.gather(*serving, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            headers = {
                name.lower(): value
                for name, _, value in (line.partition(": ") for line in head.split("\r\n")[1:] if line)
            }
            body = json.loads(await reader.readexactly(int(headers["content-length"])))
            self.requests.append({"head": head, "headers": headers, "body": body})
            held = self.held
            self.asked.set()
            if held is not None:
                await held.wait()
            if self.chunks is None:
                await self._whole(writer)
            else:
                await self._stream(writer, self.chunks)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _whole(self, writer: asyncio.StreamWriter) -> None:
        if self.body == HANG:
            await asyncio.Event().wait()
        data = (self.body if isinstance(self.body, str) else json.dumps(self.body)).encode()
        head = f"HTTP/1.1 {self.status} X\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
        writer.write(head.encode() + data)
        await writer.drain()

    async def _stream(self, writer: asyncio.StreamWriter, chunks: Sequence[Any]) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        for chunk in chunks:
            await writer.drain()
            if chunk == BREAK:
                writer.transport.abort()
                return
            if chunk == HANG:
                await asyncio.Event().wait()
            data = chunk if isinstance(chunk, str) else json.dumps(chunk)
            writer.write(f"data: {data}\n\n".encode())
        await writer.drain()


def answer(text: str, usage: dict[str, Any] | None) -> dict[str, Any]:
    """A chat completion."""
    message = {"role": "assistant", "content": text}
    body: dict[str, Any] = {"model": "m-1", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    return {**body, "usage": usage} if usage is not None else body


def chunk(text: str = "", reason: str | None = None, usage: dict[str, Any] | None = None) -> dict[str, Any]:
    """One chunk of a streamed one."""
    choices = [] if usage else [{"index": 0, "delta": {"content": text}, "finish_reason": reason}]
    return {"model": "m-1", "choices": choices, "usage": usage}
