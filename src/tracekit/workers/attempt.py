"""One attempt: a claimed hop, through its mode's handler, to its ending. Whatever the handler does, there is one."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from datetime import timedelta
from typing import Any, get_args

import structlog
from pydantic import ValidationError

from tracekit.queue import GiveUp, LeaseLost, Outcome, PayloadRefused, Position
from tracekit.queue.effects import EffectUncertain
from tracekit.queue.model import Failed
from tracekit.tracing.hop import HopScope, hop_scope
from tracekit.workers.mode import Hop, Mode, Services

log = structlog.get_logger()

Answer = Outcome | Failed
_OUTCOMES = get_args(Outcome)


async def run_attempt(
    mode: Mode[Any], position: Position, services: Services, threads: ThreadPoolExecutor, longest: timedelta
) -> Answer:
    """Run the handler inside its attempt's span and log context.

    Raises `LeaseLost` if the handler found its lease gone, and `asyncio.CancelledError` if the worker cancelled it.
    """
    scope = HopScope(
        task_id=position.task_id,
        trace_id=position.trace_id,
        span_id=position.span_id,
        hop=position.hop,
        attempt=position.attempt,
        mode=position.mode,
        persona=position.persona,
        data_tier=position.data_tier,
        trace_state=position.trace_state,
    )
    with hop_scope(scope):
        answer = await _answer(mode, position, services, threads, longest)
        if isinstance(answer, Failed):
            log.warning("attempt.failed", attempt=position.attempt, error_type=answer.error_type)
        else:
            log.info("attempt.ended", attempt=position.attempt, outcome=type(answer).__name__)
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


async def _answer(
    mode: Mode[Any], position: Position, services: Services, threads: ThreadPoolExecutor, longest: timedelta
) -> Answer:
    try:
        value = mode.input_type.model_validate(position.input if position.input is not None else {})
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()[:20])
        return Failed("InvalidInput", f"{mode.name} cannot take its input: {faults}")
    hop = Hop(position, value, services, structlog.get_logger())
    try:
        async with asyncio.timeout(longest.total_seconds()) as limit:
            if mode.blocks:
                context = copy_context()
                answer = await asyncio.get_running_loop().run_in_executor(threads, context.run, mode.run, hop)
            else:
                answer = await mode.run(hop)  # type: ignore[misc]
    except LeaseLost:
        raise
    except EffectUncertain as error:
        return GiveUp(str(error))
    except PayloadRefused as error:
        return Failed("PayloadRefused", str(error))
    except TimeoutError as error:
        if limit.expired():
            return Failed("timeout", f"{mode.name} took longer than {longest.total_seconds():g} s")
        return Failed("TimeoutError", str(error))
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
