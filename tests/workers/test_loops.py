"""Loops that run for ever end when they are told to."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.processes import patience
from tracekit.workers import loops


async def test_a_task_that_misses_its_first_cancellation_ends_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "AGAIN", 0.01)
    missed = 0

    async def round() -> None:
        nonlocal missed
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            missed += 1
            if missed > 2:
                raise

    deaf = asyncio.create_task(loops.keep("deaf", round))
    failed = asyncio.create_task(asyncio.sleep(0, result=None))
    await asyncio.sleep(0.01)
    async with patience():
        await loops.end(deaf, failed)
    assert deaf.cancelled()
    assert missed == 3
