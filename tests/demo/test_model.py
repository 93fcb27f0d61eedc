"""The stand-in for a model uses no more than was reserved for it, as a real one cannot (C3)."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.cost.driving import rows
from tests.cost.hops import hop_of
from tests.queue.driving import accept, take
from tests.support.processes import Process
from tracekit.queue import Queue
from tracekit.workers.models import Message, chat


@pytest.mark.parametrize(("prompt", "most"), [("x", 1), ("é" * 40, 99), ("question 1", 200), ("x" * 4_000, 100)])
async def test_c3_the_stand_in_s_calls_are_within_their_reservations(
    queue: Queue, tmp_path: Path, prompt: str, most: int
) -> None:
    async with (
        await Process.start("tracekit.demo.model", "--port", "0", log=tmp_path / "model.log") as model,
        httpx.AsyncClient() as http,
    ):
        await model.prints()
        await accept(queue)
        models = {"remote": {"base_url": model.lines[0], "model": "m-1", "provider": "test"}}
        hop = hop_of(queue, await take(queue), http, models=models)
        answered = await chat(hop, "remote", [Message("user", prompt)], max_tokens=most)
    assert answered.usage.basis == "reported"
    assert (answered.usage.input, answered.usage.output) == (-(-len(prompt.encode()) // 4), min(100, most))
    [(tokens,)] = await rows(queue, "SELECT tokens FROM tracekit.reservations")
    assert answered.usage.tokens <= tokens
