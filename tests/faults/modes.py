"""Modes that behave as handlers do on bad days."""

from __future__ import annotations

import asyncio
import os
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from tracekit.queue import Done, HandOff, Outcome, Park
from tracekit.workers.mode import Hop, Mode

LEDGER = "TRACEKIT_TEST_LEDGER"
"""Variable with the file that stands for the outside world: what is done to it cannot be undone."""


class Work(BaseModel):
    seconds: float = 0.0
    failures: int = 0
    hops: int = 0


def write_ledger(hop: Hop[Any], step: str) -> str:
    """Do something to the world. One short line appended is one write: it is there whole or not at all."""
    line = f"{hop.task.task_id} {step} {hop.task.attempt}\n"
    descriptor = os.open(os.environ[LEDGER], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)
    return line.strip()


def release_file() -> Path:
    """Once it is there, handlers that hear nothing go on."""
    return Path(os.environ[LEDGER] + ".release")


def read_ledger(path: Path) -> list[tuple[str, str, int]]:
    """(task id, step, attempt) of each deed, in order."""
    deeds = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    return [(task_id, step, int(attempt)) for task_id, step, attempt in deeds]


class Fast(Mode[Work]):
    name = "fast"
    input_type = Work

    async def run(self, hop: Hop[Work]) -> Outcome:
        return Done(summary="fast")


class Slow(Mode[Work]):
    name = "slow"
    input_type = Work

    async def run(self, hop: Hop[Work]) -> Outcome:
        write_ledger(hop, "begun")
        try:
            await asyncio.sleep(hop.input.seconds)
        except asyncio.CancelledError:
            write_ledger(hop, "cancelled")
            raise
        write_ledger(hop, "finished")
        return Done(summary=f"by {os.getpid()}")


class Raising(Mode[Work]):
    name = "raising"
    input_type = Work

    async def run(self, hop: Hop[Work]) -> Outcome:
        if hop.task.attempt <= hop.input.failures:
            raise RuntimeError(f"attempt {hop.task.attempt} fails")
        return Done(summary="at last")


class Poison(Mode[Work]):
    """Kills its worker."""

    name = "poison"
    input_type = Work

    async def run(self, hop: Hop[Work]) -> Outcome:
        os._exit(66)


class Effectful(Mode[Work]):
    """Three steps; a thread's, because that is how most capabilities work."""

    name = "effectful"
    input_type = Work

    def run(self, hop: Hop[Work]) -> Outcome:
        steps = [hop.blocking.effect(step, partial(write_ledger, hop, step)) for step in ("a", "b", "c")]
        return Done(summary="; ".join(steps))


class Careful(Mode[Work]):
    """One deed that nobody would want done twice."""

    name = "careful"
    input_type = Work

    def run(self, hop: Hop[Work]) -> Outcome:
        return Done(summary=hop.blocking.effect("deed", partial(write_ledger, hop, "deed"), uncertain="raise"))


class Lingering(Mode[Work]):
    """Takes its time at the first attempt; any other is done at once."""

    name = "lingering"
    input_type = Work

    async def run(self, hop: Hop[Work]) -> Outcome:
        write_ledger(hop, "begun")
        try:
            await asyncio.sleep(hop.input.seconds if hop.task.attempt == 1 else 0)
        except asyncio.CancelledError:
            write_ledger(hop, "cancelled")
            raise
        return Done(summary=f"attempt {hop.task.attempt}")


class Deaf(Mode[Work]):
    """Goes on at its first attempt, whoever cancels it, until the test releases it."""

    name = "deaf"
    input_type = Work

    async def run(self, hop: Hop[Work]) -> Outcome:
        write_ledger(hop, "begun")
        while hop.task.attempt == 1 and not release_file().exists():
            try:
                await asyncio.sleep(0.02)
            except asyncio.CancelledError:
                write_ledger(hop, "ignored")
        write_ledger(hop, "answered")
        return Done(summary=f"attempt {hop.task.attempt}")


class Blocked(Mode[Work]):
    """The same in a thread, which nothing can cancel."""

    name = "blocked"
    input_type = Work

    def run(self, hop: Hop[Work]) -> Outcome:
        write_ledger(hop, "begun")
        while hop.task.attempt == 1 and not release_file().exists():
            time.sleep(0.02)
        write_ledger(hop, "answered")
        return Done(summary=f"attempt {hop.task.attempt}")


class Timekeeper(Mode[Work]):
    """Tells the worker's clock to a mode that no worker serves."""

    name = "timekeeper"
    input_type = Work

    async def run(self, hop: Hop[Work]) -> Outcome:
        return HandOff("elsewhere", {"time": time.time(), "datetime": datetime.now(UTC).timestamp()})


class Chain(Mode[Work]):
    name = "chain"
    input_type = Work

    async def run(self, hop: Hop[Work]) -> Outcome:
        if hop.input.hops:
            return HandOff("chain", Work(hops=hop.input.hops - 1))
        return Done(summary=f"after {hop.task.hop} hops")


class Parker(Mode[Work]):
    name = "parker"
    input_type = Work

    async def run(self, hop: Hop[Work]) -> Outcome:
        if hop.resumption is None:
            return Park("ci", parker_key(hop.task.task_id), timedelta(minutes=10))
        assert hop.resumption.signal is not None
        return Done(summary=str(hop.resumption.signal.payload))


class Review(BaseModel):
    review: dict[str, str | int]


class Guardian(Mode[Review]):
    """Gets the review tasks, and waits for what the operator does about the dead one."""

    name = "guardian"
    input_type = Review

    async def run(self, hop: Hop[Review]) -> Outcome:
        if hop.resumption is None:
            dead = hop.input.review
            return Park("review", f"dlq:{dead['task_id']}/{dead['hop']}", timedelta(days=1))
        return Done(summary="reviewed")


def parker_key(task_id: str) -> str:
    return f"faults:{task_id}"


ALL: tuple[type[Mode[Any]], ...] = (
    Fast, Slow, Raising, Poison, Effectful, Careful, Lingering, Deaf, Blocked, Timekeeper, Chain, Parker,
    Guardian,
)  # fmt: skip
