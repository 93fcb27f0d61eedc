"""What the listener does with notifications that no tracekit has sent: whoever may connect may notify."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Any

import pytest

from tests.support.processes import patience
from tracekit.postgres import Pool, connect
from tracekit.queue.listener import Listener, ListenerState
from tracekit.queue.notify import CHANNEL


@pytest.mark.parametrize("payload", ["[" * 7_900, "no JSON", '"text"', '[{"mode": []}]', '[{"mode": {}}, 1, null]'])
async def test_q10_what_nobody_of_ours_has_sent_is_no_loss_of_the_connection(
    dsn: str, pool: Pool, payload: str
) -> None:
    heard: asyncio.Queue[list[dict[str, Any]]] = asyncio.Queue()
    listener = Listener(
        dsn, pool, heard.put_nowait, connect=lambda to: connect(to, autocommit=True), test_interval=timedelta(hours=1)
    )
    listening = asyncio.create_task(listener.listen())
    try:
        async with patience():
            while listener.state is not ListenerState.LISTENING:
                await listener.changed.wait()
                listener.changed.clear()
            async with pool.connection() as connection:
                for sent in (payload, json.dumps([{"mode": None}]), json.dumps([{"mode": "router"}])):
                    await connection.execute("SELECT pg_notify(%s, %s)", [CHANNEL, sent])
            got = [await heard.get()]
            while got[-1] != [{"mode": "router"}]:
                got.append(await heard.get())
        # Nothing but the beginning says that something may have been missed.
        assert got == [[], [{"mode": None}], [{"mode": "router"}]]
        assert listener.state is ListenerState.LISTENING
        assert not listening.done()
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
