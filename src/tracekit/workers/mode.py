"""What a mode is: a small class with a typed input that turns a hop into an outcome.

A mode of another package is an entry point of the group `tracekit.modes`::

    [project.entry-points."tracekit.modes"]
    translator = "my_package:Translator"

and looks like this::

    class Text(BaseModel):
        text: str

    class Translator(Mode[Text]):
        name = "translator"
        input_type = Text

        async def run(self, hop: Hop[Text]) -> Outcome:
            french = await hop.effect("translate", lambda: translate(hop.input.text))
            return Done(summary=french)

`run` may also be a plain function: it then runs in a thread, and calls `hop.blocking.effect(...)`.
"""

from __future__ import annotations

import asyncio
import inspect
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from importlib.metadata import entry_points
from typing import Any, ClassVar, Generic, Literal, TypeVar

import httpx
import structlog
from pydantic import BaseModel, ConfigDict

from tracekit.config import Settings
from tracekit.cost import Booked, CallSpan, Ledger, PriceBook, Usage
from tracekit.errors import TracekitError
from tracekit.queue import Outcome, Position, Queue, Resumption
from tracekit.queue.model import Json
from tracekit.tracing.context import TraceContext
from tracekit.tracing.hop import HopScope
from tracekit.workers.booking import current_context, insist, outlive
from tracekit.workers.personas import Persona, Personas

Input = TypeVar("Input", bound=BaseModel)


class NoInput(BaseModel):
    """The input of a mode that needs only the task itself."""

    model_config = ConfigDict(extra="ignore")


@dataclass(frozen=True, slots=True)
class Services:
    """What modes share in a process."""

    settings: Settings
    queue: Queue
    http: httpx.AsyncClient
    """Instrumented: a request made in a hop is a CLIENT span of its attempt and carries `traceparent`."""
    personas: Personas = field(default_factory=lambda: Personas({}))
    """Those of the configured directory."""
    ledger: Ledger = field(init=False)
    """What model calls spend."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "ledger", Ledger(self.queue, PriceBook(self.settings.prices)))


class BlockingHop:
    """What a handler in a thread may call. Each call waits for the event loop's answer."""

    def __init__(self, hop: Hop[Any], loop: asyncio.AbstractEventLoop) -> None:
        self._hop = hop
        self._loop = loop

    def effect(
        self, step: str, function: Callable[[], Json], *, uncertain: Literal["rerun", "raise"] = "rerun"
    ) -> Json:
        """`Hop.effect` for a function that blocks: it runs in this thread."""
        done, result = self._wait(self._hop.services.queue.begin_effect(self._hop.task, step, uncertain=uncertain))
        if not done:
            result = function()
            self._wait(self._hop.services.queue.record_effect(self._hop.task, step, result))
        return result

    def usage(self, *calls: Usage) -> list[Booked]:
        """`Hop.usage`."""
        booked: list[Booked] = self._wait(self._hop.usage(*calls))
        return booked

    def _wait(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


@dataclass(slots=True)
class Hop(Generic[Input]):
    """One attempt at one hop, as its handler sees it."""

    task: Position
    """The task, its envelope's fields, and this claim of it."""
    input: Input
    services: Services
    log: structlog.stdlib.BoundLogger
    """Every line of it carries trace_id, span_id, task_id, mode and persona."""
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)

    @property
    def resumption(self) -> Resumption | None:
        """How a parked hop came back, or None at its first run. `signal` None: by its deadline."""
        return self.task.resumption

    @property
    def persona(self) -> Persona | None:
        """The character that the route gave the task: its prompt, tools and model, where a file describes them."""
        return self.services.personas.get(self.task.persona) if self.task.persona else None

    @property
    def trace(self) -> TraceContext:
        """The attempt's place in the trace, for whatever border the handler crosses."""
        return TraceContext(self.task.trace_id, self.task.span_id, self.task.trace_state)

    @property
    def scope(self) -> HopScope:
        """The attempt, as spans and log lines know it."""
        return scope_of(self.task)

    @property
    def blocking(self) -> BlockingHop:
        """The same for a handler that runs in a thread."""
        return BlockingHop(self, self.loop)

    async def effect(
        self, step: str, function: Callable[[], Awaitable[Json]], *, uncertain: Literal["rerun", "raise"] = "rerun"
    ) -> Json:
        """What `function` did, once for this task and `step`; its recorded result ever after (Q5).

        Where an earlier attempt began the step and died before recording it, `uncertain` decides: run it again, or
        raise `EffectUncertain`. An exception of `function` that says it did nothing is the caller's to `undo`.
        Raises `LeaseLost`.
        """
        done, result = await self.services.queue.begin_effect(self.task, step, uncertain=uncertain)
        if not done:
            result = await function()
            await self.services.queue.record_effect(self.task, step, result)
        return result

    async def usage(self, *calls: Usage) -> list[Booked]:
        """Book what calls of models spent that this attempt made by itself, each with a span (C1, C2). For most,
        `tracekit.cost.readers` makes the usage of what the model or program answered.

        It is written at once, so an attempt that fails or dies later has spent it all the same. The same `Usage.key`
        again is a later report of the same call. Raises `LeaseLost`; what was spent is booked even then.
        """
        return await outlive(self._book(calls))

    async def _book(self, calls: Sequence[Usage]) -> list[Booked]:
        ledger, scope = self.services.ledger, self.scope
        reports = []
        for usage in calls:
            span = CallSpan.of_the_past(usage, current_context(scope))
            span.say(scope.attributes())
            report = await ledger.report(usage, span)
            span.end(usage, report.priced)
            reports.append(report)
        return await insist(lambda: ledger.book(self.task, reports), reports)


def scope_of(at: Position) -> HopScope:
    """The attempt of a claim, as spans and log lines know it."""
    return HopScope(
        task_id=at.task_id,
        trace_id=at.trace_id,
        hop=at.hop,
        attempt=at.attempt,
        mode=at.mode,
        persona=at.persona,
        data_tier=at.data_tier,
        trace_state=at.trace_state,
    )


class Mode(ABC, Generic[Input]):
    """One kind of work. An instance serves all hops of its mode in a process; it must not keep state between them."""

    name: ClassVar[str]
    """Of the queue it serves: lower case, used in span names and labels."""
    input_type: type[Input]
    """What its hops are given. What does not fit is a failed attempt, not a crash."""
    timeout: ClassVar[timedelta | None] = None
    """The longest that an attempt may take. None: `worker.handler_timeout`."""

    def __init__(self, services: Services) -> None:
        self.services = services

    @abstractmethod
    def run(self, hop: Hop[Input]) -> Outcome | Awaitable[Outcome]:
        """Work on the hop. What it raises is a failed attempt and, attempts left, a retry."""

    def sources(self) -> Sequence[Source]:
        """What this mode looks at beside its hops. The runtime polls each at its interval, in every process that serves
        the mode: what a source files, it files under keys that make it one task.
        """
        return ()

    @cached_property
    def blocks(self) -> bool:
        """Whether `run` is a plain function, to be run in a thread."""
        return not inspect.iscoroutinefunction(self.run)


class Source(ABC):
    """Something beside a mode's hops: it looks at the world now and then and files tasks."""

    interval: timedelta
    """Between looks."""

    @abstractmethod
    async def poll(self) -> int:
        """Look once; returns how many tasks were filed. What it raises is logged, and tried again at the next look."""


class UnknownMode(TracekitError):
    """No installed package brings a mode of this name."""

    exit_code = 2


def installed_modes() -> dict[str, type[Mode[Any]]]:
    """The modes of all installed packages, by name. A name that two packages bring is refused."""
    found: dict[str, type[Mode[Any]]] = {}
    for entry in entry_points(group="tracekit.modes"):
        if entry.name in found:
            raise UnknownMode(f"two installed packages bring a mode named {entry.name!r}", hint="uninstall one of them")
        found[entry.name] = entry.load()
    return found
