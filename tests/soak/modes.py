"""What the soak's tasks do: every way a hop can end, and a deed or two that cannot be undone."""

from __future__ import annotations

import asyncio
import os
from datetime import timedelta
from functools import partial
from typing import Any

from pydantic import BaseModel

from tests.faults.modes import Guardian
from tracekit.queue import Done, HandOff, Outcome, Park, RetryLater
from tracekit.workers.mode import Hop, Mode

LEDGER = "TRACEKIT_SOAK_LEDGER"
"""Variable with the file that stands for the outside world: a line for each deed, `task step hop attempt`."""

STEPS = ("a", "b", "c")
MAY_DIE = frozenset({"doomed", "once"})
"""Modes whose tasks may come to lie in the DLQ. All others are to be done in the end, or expire."""


class Work(BaseModel):
    key: str
    seconds: float = 0.0
    failures: int = 0
    hops: int = 0


def signal_key(key: str) -> str:
    """What the task of this idempotency key waits for. It is known before the task is enqueued."""
    return f"soak:{key}"


async def write_ledger(hop: Hop[Any], step: str) -> str:
    """One short line appended is one write: it is there whole or not at all."""
    line = f"{hop.task.task_id} {step} {hop.task.hop} {hop.task.attempt}\n"
    descriptor = os.open(os.environ[LEDGER], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)
    return line.strip()


class Chain(Mode[Work]):
    name = "chain"
    input_type = Work

    async def run(self, hop: Hop[Work]) -> Outcome:
        if hop.input.hops:
            return HandOff("chain", hop.input.model_copy(update={"hops": hop.input.hops - 1}).model_dump())
        return Done(summary="chain")


class Slow(Mode[Work]):
    name = "slow"
    input_type = Work

    async def run(self, hop: Hop[Work]) -> Outcome:
        await asyncio.sleep(hop.input.seconds)
        return Done(summary="slow")


class Flaky(Mode[Work]):
    name = "flaky"
    input_type = Work

    async def run(self, hop: Hop[Work]) -> Outcome:
        if hop.task.attempt <= hop.input.failures:
            raise RuntimeError(f"attempt {hop.task.attempt} fails")
        return Done(summary="flaky")


class Later(Mode[Work]):
    name = "later"
    input_type = Work

    async def run(self, hop: Hop[Work]) -> Outcome:
        if hop.task.attempt == 1:
            return RetryLater(timedelta(seconds=hop.input.seconds), "not yet")
        return Done(summary="later")


class Deeds(Mode[Work]):
    """Three steps, each of which may be repeated where a worker died between the deed and its record."""

    name = "deeds"
    input_type = Work

    async def run(self, hop: Hop[Work]) -> Outcome:
        for step in STEPS:
            await hop.effect(step, partial(write_ledger, hop, step))
            await asyncio.sleep(hop.input.seconds)
        return Done(summary="deeds")


class Once(Mode[Work]):
    """A step that must not be repeated: what is uncertain goes to the operator."""

    name = "once"
    input_type = Work

    async def run(self, hop: Hop[Work]) -> Outcome:
        await hop.effect("once", partial(write_ledger, hop, "once"), uncertain="raise")
        return Done(summary="once")


class Parker(Mode[Work]):
    name = "parker"
    input_type = Work

    async def run(self, hop: Hop[Work]) -> Outcome:
        if hop.resumption is None:
            return Park("ci", signal_key(hop.input.key), timedelta(seconds=hop.input.seconds))
        return Done(summary="signal" if hop.resumption.signal else "deadline")


class Doomed(Mode[Work]):
    """Fails until somebody redrives it."""

    name = "doomed"
    input_type = Work

    async def run(self, hop: Hop[Work]) -> Outcome:
        if hop.task.hop == 1:
            raise RuntimeError("it is not to be")
        return Done(summary="doomed")


ALL: tuple[type[Mode[Any]], ...] = (Chain, Slow, Flaky, Later, Deeds, Once, Parker, Doomed, Guardian)
