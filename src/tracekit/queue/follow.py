"""Following one task: everything that happened, then what happens, until it leaves the queue.

A look is one snapshot: the record's new lines and the task as it stood when the last of them was written. Because lines
of one task are numbered in the order of their commits, the number of the last line seen is all that a reader has to
keep to go on later, after a lost connection or in another process, without losing or doubling any.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from psycopg import AsyncConnection

from tracekit.postgres import is_away
from tracekit.queue import tasks
from tracekit.queue.client import Queue

POLL = timedelta(seconds=0.5)
"""Between looks when nothing wakes the reader."""

_FIRST_REST = 0.1
_LONGEST_REST = 2.0


@dataclass(frozen=True, slots=True)
class Look:
    """The lines of the record that are new, and the task as it stood with them."""

    task: tasks.Task
    events: list[tasks.Event]

    @property
    def last(self) -> bool:
        """Whether the task has left the queue: it has ended, or lies in the DLQ."""
        return self.task.state != "open"


@dataclass(frozen=True, slots=True)
class Away:
    """The database cannot be had at the moment; the reader keeps trying."""

    error: str


async def look(connection: AsyncConnection[Any], task_id: str, since_seq: int = 0) -> Look:
    """One snapshot of a task and of its record after `since_seq`. Raises `TaskNotFound`."""
    async with connection.transaction():
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        task = await tasks.task(connection, task_id)
        return Look(task, await tasks.events(connection, task_id, since_seq=since_seq))


class Follower:
    """A reader of one task. Its `wake` may be called from a listener; without it the task is looked at every `poll`."""

    def __init__(self, queue: Queue, task_id: str, *, since_seq: int = 0, poll: timedelta = POLL) -> None:
        self._queue = queue
        self._poll = poll.total_seconds()
        self._woken = asyncio.Event()
        self.task_id = task_id
        self.seq = since_seq
        """Of the last line handed out."""

    def wake(self, wakeups: list[dict[str, Any]]) -> None:
        """What a `Listener` calls. Wake-ups of other tasks are passed over; an empty list may have been any."""
        if not wakeups or any(wakeup.get("task") == self.task_id for wakeup in wakeups):
            self._woken.set()

    async def looks(self) -> AsyncIterator[Look | Away]:
        """Looks, the first at once with all the record, and the last when the task has left the queue.

        A look may bring no line: then the task was only polled. Raises `TaskNotFound`.
        """
        failures = 0
        while True:
            self._woken.clear()
            try:
                async with self._queue.connection() as connection:
                    seen = await look(connection, self.task_id, self.seq)
            except Exception as error:
                if not is_away(error):
                    raise
                failures += 1
                yield Away(_one_line(error))
                rest = min(_LONGEST_REST, _FIRST_REST * 2 ** min(failures, 8))
                await asyncio.sleep(random.uniform(_FIRST_REST, rest))
                continue
            failures = 0
            _heed_cancellation()
            if seen.events:
                self.seq = seen.events[-1].seq
            yield seen
            if seen.last:
                return
            try:
                async with asyncio.timeout(self._poll):
                    await self._woken.wait()
            except TimeoutError:
                pass


def _heed_cancellation() -> None:
    """Raise what `asyncio.wait_for` of Python 3.11, on which psycopg waits, may have lost: a cancellation that comes
    together with the answer waited for.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
