"""One attempt: a claimed hop, through its mode's handler, to its ending. Whatever the handler does, there is one."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, get_args

import structlog
from pydantic import ValidationError

from tracekit.cost import OverBudget
from tracekit.queue import GiveUp, LeaseLost, Outcome, PayloadRefused, Position
from tracekit.queue.effects import EffectUncertain
from tracekit.queue.model import Failed
from tracekit.tracing.hop import enter_hop
from tracekit.workers import over_budget
from tracekit.workers.mode import Hop, Mode, Services, scope_of

log = structlog.get_logger()

Answer = Outcome | Failed
_OUTCOMES = get_args(Outcome)


async def run_attempt(mode: Mode[Any], position: Position, services: Services, threads: ThreadPoolExecutor) -> Answer:
    """Run the handler inside its attempt's span and log context, which the asyncio task keeps: it must be its own.

    Raises `LeaseLost` if the handler found its lease gone, and `asyncio.CancelledError` if the worker cancelled it,
    whose business the time is that it takes.
    """
    enter_hop(scope_of(position))
    answer = await _answer(mode, position, services, threads)
    if isinstance(answer, Failed):
        log.warning("attempt.failed", attempt=position.attempt, error_type=answer.error_type)
    return answer


def _asked_to_stop(error: BaseException) -> bool:
    """Whether this task was told to stop: by the worker's `cancel`, or by the end of the event loop."""
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is None or task.cancelling() > 0
    if isinstance(error, GeneratorExit):
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return True
    return False


def _said(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return "it has a message that cannot be read"


async def _run(mode: Mode[Any], hop: Hop[Any], threads: ThreadPoolExecutor) -> Any:
    if mode.blocks:
        context = copy_context()
        return await asyncio.get_running_loop().run_in_executor(threads, context.run, mode.run, hop)
    return await mode.run(hop)  # type: ignore[misc]


async def _answer(mode: Mode[Any], position: Position, services: Services, threads: ThreadPoolExecutor) -> Answer:
    try:
        value = mode.input_type.model_validate(position.input if position.input is not None else {})
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()[:20])
        return Failed("InvalidInput", f"{mode.name} cannot take its input: {faults}")
    except Exception as error:
        # A validator that raises anything but ValueError: pydantic lets it through.
        return Failed(type(error).__qualname__, _said(error))
    hop = Hop(position, value, services, log)
    try:
        answer = await over_budget.decided(hop)
        if answer is None:
            try:
                answer = await _run(mode, hop, threads)
            except OverBudget as error:
                answer = await over_budget.answer(hop, error)
    except LeaseLost:
        raise
    except EffectUncertain as error:
        return GiveUp(str(error))
    except PayloadRefused as error:
        return Failed("PayloadRefused", str(error))
    except BaseException as error:
        if _asked_to_stop(error):
            raise
        # A handler that calls sys.exit(), or awaits what somebody cancelled, ends its attempt and not the worker.
        log.debug("attempt.raised", exc_info=True)
        return Failed(type(error).__qualname__, _said(error))
    if not isinstance(answer, _OUTCOMES):
        return Failed("InvalidOutcome", f"{mode.name} answered {type(answer).__name__}, which is no outcome")
    outcome: Outcome = answer
    return outcome
