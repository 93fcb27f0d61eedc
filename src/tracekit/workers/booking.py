"""Booking what was spent, whatever stands in the way: money that is gone must not be forgotten with the connection."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

import structlog
from opentelemetry import context, trace
from opentelemetry.context import Context

from tracekit.cost import Report
from tracekit.postgres import is_away
from tracekit.queue import LeaseLost
from tracekit.tracing.hop import HopScope

log = structlog.get_logger()

PATIENCE = 120.0
"""Seconds that booking is tried again while the database is away. A lease is long gone by then."""

_FIRST_REST, _LONGEST_REST = 0.1, 5.0

Result = TypeVar("Result")

_under_way: set[asyncio.Task[Any]] = set()


def current_context(scope: HopScope) -> Context:
    """Where the caller is in the attempt's trace: the current span, or the attempt's."""
    here = trace.get_current_span().get_span_context()
    in_it = here.is_valid and trace.format_trace_id(here.trace_id) == scope.trace_id
    return context.get_current() if in_it else scope.context()


def carry_on(work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
    """Do it beside the caller, whatever becomes of them."""
    task = asyncio.ensure_future(work)
    _under_way.add(task)
    task.add_done_callback(_done)
    return task


async def outlive(work: Coroutine[Any, Any, Result]) -> Result:
    """What `work` returns. It is carried on with when the caller is cancelled."""
    return await asyncio.shield(carry_on(work))


async def insist(book: Callable[[], Awaitable[Result]], reports: Sequence[Report] = ()) -> Result:
    """What `book` returns, tried again while the database is away, and carried on with when the caller is cancelled: a
    handler that is told to stop has spent what it spent.

    Raises what `book` does. What could not be booked is logged, in numbers.
    """
    return await outlive(_until_done(book, reports))


def _done(task: asyncio.Task[Any]) -> None:
    _under_way.discard(task)
    if not task.cancelled():
        task.exception()  # it has been logged, and the caller may be gone


async def _until_done(book: Callable[[], Awaitable[Result]], reports: Sequence[Report]) -> Result:
    began, tries = time.monotonic(), 0
    while True:
        try:
            return await book()
        except LeaseLost:
            raise
        except Exception as error:
            tries += 1
            rest = random.uniform(_FIRST_REST, min(_LONGEST_REST, _FIRST_REST * 2**tries))
            if not is_away(error) or time.monotonic() - began + rest > PATIENCE:
                _forgotten(reports, error)
                raise
        except asyncio.CancelledError as error:
            _forgotten(reports, error)
            raise
        await asyncio.sleep(rest)


def _forgotten(reports: Sequence[Report], error: BaseException) -> None:
    for report in reports:
        log.error(
            "usage.not_booked",
            key=report.key,
            model=report.usage.model,
            tokens=report.usage.tokens,
            cost=None if report.priced.cost is None else str(report.priced.cost),
            error_type=type(error).__name__,
        )
