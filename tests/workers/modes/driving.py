"""Modes driven through a real queue, hop by hop, without the worker's loops."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx

from tests.queue.driving import claim, settle, submission, take
from tests.support.processes import patience
from tracekit.config import GuardianSettings, HomeAssistantSettings, PrometheusSettings, Settings
from tracekit.demo.home_assistant import HomeAssistantStandIn
from tracekit.queue import Outcome, Position, Queue
from tracekit.queue.model import Failed
from tracekit.queue.tasks import Task
from tracekit.workers.attempt import run_attempt
from tracekit.workers.mode import Mode, Services
from tracekit.workers.modes.executor import Executor
from tracekit.workers.modes.guardian import Guardian
from tracekit.workers.modes.planner import Planner
from tracekit.workers.modes.reviewer import Reviewer
from tracekit.workers.modes.router import Router
from tracekit.workers.plan import Reviewed

MODES: tuple[type[Mode[Any]], ...] = (Router, Planner, Guardian, Executor, Reviewer)
SECRET = "not-a-secret-in-tests"


@dataclass(slots=True)
class Driver:
    """The five modes over one queue, one hop at a time."""

    queue: Queue
    settings: Settings
    http: httpx.AsyncClient
    modes: dict[str, Mode[Any]] = field(default_factory=dict)
    log: list[tuple[str, Outcome | Failed]] = field(default_factory=list)
    """Every attempt's mode and answer, in order."""

    def __post_init__(self) -> None:
        self.modes = {mode.name: mode(Services(self.settings, self.queue, self.http)) for mode in MODES}

    async def file(self, intent: str, *, mode: str = "router", input: Any = None, **fields: Any) -> str:
        """A task; its id."""
        return (await self.queue.enqueue([submission(mode, input, intent=intent, **fields)]))[0].task_id

    async def answer(self, position: Position) -> Outcome | Failed:
        """What the position's mode says to it. Nothing is settled."""
        mode = self.modes[position.mode]
        services = Services(self.settings, self.queue, self.http)
        with ThreadPoolExecutor(1) as threads:
            async with patience():
                answer = await run_attempt(mode, position, services, threads)
        self.log.append((position.mode, answer))
        return answer

    async def run(self, *, until: Sequence[str] = ("historian",)) -> None:
        """Work until nothing is ready but what waits for a mode of `until`."""
        while True:
            for name in self.modes:
                if name not in until and (position := await claim(self.queue, name)) is not None:
                    assert await settle(self.queue, position, await self.answer(position))
                    break
            else:
                if await self.queue.sweep() == 0:
                    return

    async def do(self, intent: str, **fields: Any) -> Task:
        """File a task and work on it."""
        task_id = await self.file(intent, **fields)
        await self.run()
        return await self.queue.task(task_id)

    async def reviewed(self) -> Reviewed:
        """What the reviewer told the historian."""
        position = await take(self.queue, "historian")
        return Reviewed.model_validate(position.input)

    @property
    def visited(self) -> list[str]:
        """The modes that answered, in order."""
        return [mode for mode, _ in self.log]

    async def notices(self, task_id: str) -> list[dict[str, Any]]:
        """What people are told of a task, the oldest first."""
        async with self.queue.connection() as connection:
            cursor = await connection.execute(
                "SELECT kind, title, body, urgent, recipient, data FROM tracekit.outbox WHERE task_id = %s ORDER BY id",
                [task_id],
            )
            names = [column.name for column in cursor.description or ()]
            return [dict(zip(names, row, strict=True)) for row in await cursor.fetchall()]

    async def let_time_pass(self, task_id: str, *, wait: bool = True) -> None:
        """The deadline of a parked task's wait is now in the past; the sweep has not looked yet."""
        async with self.queue.connection() as connection:
            await connection.execute(
                "UPDATE tracekit.queue SET due_at = clock_timestamp() - interval '1 s' WHERE task_id = %s", [task_id]
            )
            await connection.execute(
                "UPDATE tracekit.waits SET deadline = clock_timestamp() - interval '1 s'"
                " WHERE task_id = %s AND closed_at IS NULL",
                [task_id],
            )


def settings_for(home: Path, house: HomeAssistantStandIn, **changes: Any) -> Settings:
    """Settings with everything in `home`, and `house` for Home Assistant."""
    values: dict[str, Any] = {
        "home": home,
        "home_assistant": HomeAssistantSettings.model_validate(
            {"url": house.url, "token": house.token, "verify_timeout": timedelta(seconds=30)}
        ),
        "prometheus": PrometheusSettings(url=""),
        "guardian": GuardianSettings.model_validate({"approval_secret": SECRET}),
        **changes,
    }
    return Settings(**values)
