"""Late reports: what is learnt of a call after it was booked, from whoever learns it, also after its task has ended.

A report names the call by its key, or by the session that it tells of, and is what the provider or program answered;
`readers` makes the counters of it. The same report twice is one. A report that tells of several models (Claude Code's)
settles the call with the one that did most, and books the others beside it, as calls of the same attempt.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal, LiteralString, get_args

from psycopg import AsyncConnection
from psycopg.rows import class_row
from pydantic import BaseModel, ConfigDict, Field

from tracekit.cost import prices, readers
from tracekit.cost.ledger import Booked, Ledger, Report, book, lock
from tracekit.cost.spender import Spender
from tracekit.cost.usage import MOST, Basis, Usage, UsageError, dollars
from tracekit.envelope import Text, parse

Source = Literal["openai", "litellm", "anthropic", "ollama", "claude-code", "holmesgpt", "counters"]
"""Who answered so. `openai` is any server that speaks as OpenAI's does; `litellm` the same with the proxy's headers, or
those alone, which have a price; `counters` is what somebody else has counted.
"""

SOURCES: tuple[Source, ...] = get_args(Source)

MOST_LISTED = 20
"""Calls that an error names."""

_Key = Annotated[Text, Field(min_length=1, max_length=200)]
_Tokens = Annotated[int, Field(ge=0, le=MOST)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class LateReport(_Strict):
    """What somebody has learnt of a call."""

    source: Source
    result: Any = None
    """What it answered, as it came; of `counters` an object of those that `Counters` has. None: only the headers."""
    headers: dict[str, str] = {}
    """Of the answer, where LiteLLM's proxy gave it."""
    call: _Key | None = None
    """The call's key. None: what the result's own session was booked under, or the only call that the task made."""
    provider: Annotated[Text, Field(max_length=200)] = ""
    model: Annotated[Text, Field(max_length=200)] = ""
    """Whose the model is and which, where the result does not say. Empty: those that the call was booked with."""


class Counters(_Strict):
    """A call as somebody has counted it: disjoint tokens, as `Usage` has them, or the price alone."""

    input: _Tokens | None = None
    cache_read: _Tokens = 0
    cache_write: _Tokens = 0
    output: _Tokens | None = None
    reasoning: _Tokens = 0
    """Inside the output."""
    requests: Annotated[int, Field(ge=0, le=MOST)] | None = None
    cost: str | int | float | None = None
    """US dollars, exact where it is a text. None: to be found in a table of prices."""


class NoSuchCall(UsageError):
    """The task has no call of that name, or several where none was named."""

    exit_code = 4


@dataclass(frozen=True, slots=True)
class Call:
    """A call as the ledger knows it."""

    key: str
    hop: int
    attempt: int
    mode: str
    persona: str | None
    requester: str
    origin: str
    provider: str
    model: str
    local: bool
    input: int
    cache_read: int
    cache_write: int
    output: int
    reasoning: int
    requests: int
    details: Mapping[str, int | str]
    cost: Decimal | None
    basis: Basis
    synthetic: bool
    at: datetime

    @property
    def words(self) -> str:
        """Its key, and what it is known by."""
        known = [self.model, *([] if self.basis == "reported" else [self.basis])]
        return f"{self.key!r} ({', '.join(known)}{', unpriced' if self.cost is None else ''})"


_CALLS: LiteralString = """
SELECT key, hop, attempt, mode, persona, requester, origin, provider, model, local, input_tokens AS input,
       cache_read_tokens AS cache_read, cache_write_tokens AS cache_write, output_tokens AS output,
       reasoning_tokens AS reasoning, requests, details, cost, basis, synthetic, at
FROM tracekit.spend WHERE task_id = %s ORDER BY at, key
"""


async def settle(ledger: Ledger, task_id: str, late: LateReport, *, by: str) -> list[Booked]:
    """Write what is learnt of a call, as the next version of it, and say what the ledger knows of it now. `by`: who
    brings it, whose word counters of their own are.

    Raises `NoSuchCall`, and `UsageError` where the result has no usage or is not of the source that it is said to be;
    `EnvelopeError` lists what is wrong with counters.
    """
    await asyncio.to_thread(prices.warm)
    async with ledger.queue.connection() as connection, connection.transaction():
        await lock(connection, task_id)
        calls = await _calls(connection, task_id)
        if late.source == "claude-code":
            found = readers.claude_code(late.result)
            call = _named(task_id, calls, late.call, [usage.key for usage in found])
        else:
            call = _named(task_id, calls, late.call, [])
            found = [replace(_read(late, call, by), local=call.local)]
        if late.call is not None or found[0].key is None:
            others = [replace(one, key=f"{call.key[:99]}/{one.model[:100]}") for one in found[1:]]
            found = [replace(found[0], key=call.key), *others]
        found = [replace(one, at=call.at) for one in found]
        reports = [Report(one.key or call.key, one, ledger.prices.price(one, call.at)) for one in found]
        spender = Spender(task_id, call.hop, call.attempt, call.mode, call.persona, call.requester, call.origin)
        return await book(connection, spender, reports, synthetic=call.synthetic)


async def _calls(connection: AsyncConnection[Any], task_id: str) -> list[Call]:
    async with connection.cursor(row_factory=class_row(Call)) as cursor:
        await cursor.execute(_CALLS, [task_id])
        return await cursor.fetchall()


def _named(task_id: str, calls: Sequence[Call], key: str | None, own: Sequence[str | None]) -> Call:
    """The call of that key, or of the first of the result's `own` keys that is known; or the only one."""
    wanted = own if key is None else [key]
    for name in wanted:
        for call in calls:
            if call.key == name:
                return call
    if not calls:
        raise NoSuchCall(f"task {task_id} has called no model", hint="what was never booked is no call to settle")
    if key is None and len(calls) == 1 and not any(own):
        return calls[0]
    of = next((name for name in wanted if name), None)
    # Those of which least is known are the likeliest.
    listed = sorted(calls, key=lambda call: (call.basis == "reported", call.cost is not None))
    names = ", ".join(call.words for call in listed[:MOST_LISTED]) + (", …" if len(calls) > MOST_LISTED else "")
    raise NoSuchCall(
        f"task {task_id} has made no call {of!r}" if of else f"task {task_id} has made {len(calls)} calls",
        hint=f"name one of them: {names}",
    )


def _read(late: LateReport, call: Call, by: str) -> Usage:
    provider, model = late.provider or call.provider, late.model or call.model
    match late.source:
        case "openai" | "litellm" if late.result is None:
            return _billed(call, readers.litellm_price(late.headers), "litellm")
        case "openai" | "litellm":
            return readers.openai(late.result, provider=provider, model=model, headers=late.headers)
        case "anthropic":
            return readers.anthropic(late.result, provider=provider, model=model)
        case "ollama":
            return readers.ollama(late.result, provider=provider)
        case "holmesgpt":
            return readers.holmesgpt(late.result, provider=provider, model=model)
    counted = parse(Counters, late.result)
    cost = dollars(counted.cost)
    if counted.cost is not None and cost is None:
        raise UsageError("the counters' cost must be a number of US dollars that is not negative")
    if counted.input is None and counted.output is None:
        return _billed(call, cost, by)
    return Usage(
        provider,
        model,
        input=counted.input or 0,
        cache_read=counted.cache_read,
        cache_write=counted.cache_write,
        output=counted.output or 0,
        reasoning=counted.reasoning,
        requests=call.requests if counted.requests is None else counted.requests,
        cost=cost,
        billed_by=by if cost is not None else "",
    )


def _billed(call: Call, cost: Decimal | None, by: str) -> Usage:
    """The call with its tokens as they are known, and a price."""
    if cost is None:
        raise UsageError("the report has neither tokens nor a price")
    if call.basis == "lost":
        raise UsageError(
            f"nobody saw what the call {call.key!r} used, and a price alone does not tell",
            hint="report its tokens too",
        )
    return Usage(
        call.provider,
        call.model,
        input=call.input,
        cache_read=call.cache_read,
        cache_write=call.cache_write,
        output=call.output,
        reasoning=call.reasoning,
        requests=call.requests,
        cost=cost,
        billed_by=by,
        basis=call.basis,
        details=call.details,
    )
