"""Asking models: any server that speaks OpenAI's chat completions, from a mode or by the capability `model.chat`.

Before a call its upper bound is reserved, after it the truth is booked with its span. A call whose answer nobody saw to
the end is booked as lost; one that the server refused, or that never left, was none.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import httpx
from opentelemetry import context as otel

from tracekit.config import ModelSettings, Settings
from tracekit.cost import Booked, CallSpan, OverBudget, Report, Usage, UsageError, readers
from tracekit.cost.reservations import Intended
from tracekit.envelope import DataTier
from tracekit.queue import LeaseLost
from tracekit.queue.model import Json
from tracekit.queue.payload import plain_text
from tracekit.tracing import genai
from tracekit.workers.booking import carry_on, current_context, insist, outlive
from tracekit.workers.capabilities import Misconfigured, Refused, Unavailable
from tracekit.workers.mode import Hop
from tracekit.workers.plan import Plan

MAX_ANSWER = 16_777_216
"""Bytes of an answer, or of all of a stream."""

BYTES_PER_TOKEN = 4
"""Of a text, where the server does not say how many tokens it was."""

_CONNECT_S = 5.0
_KEY = re.compile(r"[!-~]+")
_LONGEST_REASON = 100
_PER_MESSAGE = 32
"""Tokens that a chat template may add to a message."""


class RemoteModelRefused(Refused):
    """Restricted data must not leave the house (P8)."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said, and what that came to."""

    text: str
    model: str
    finish_reason: str
    usage: Usage
    booked: Booked


@dataclass(slots=True)
class ModelCall:
    """A call under way. Whoever makes it says when it may have reached the model, and what it used."""

    span: CallSpan
    sent: bool = False
    """The request has left: from now on nobody can know that nothing was spent, unless the server refuses it."""
    usage: Usage | None = None
    """What it used, as far as it is known."""
    booked: list[Booked] = field(default_factory=list)
    """What the ledger knows of it, once it is over."""


def restricted(hop: Hop[Any]) -> bool:
    """Whether what this hop is about must stay in the house: the task, or a step of its plan, is restricted."""
    # An approved plan, and what becomes of one: whoever reviews it or tells of it has what its steps brought to light.
    plan = getattr(hop.input, "plan", None)
    return hop.task.data_tier is DataTier.RESTRICTED or (isinstance(plan, Plan) and plan.restricted)


@asynccontextmanager
async def model_call(hop: Hop[Any], intended: Intended) -> AsyncIterator[ModelCall]:
    """One call of a model: reserved before, booked after, with a span around it that what happens inside hangs under.

    What the block raises after `sent` is a call whose usage is lost, unless it was said. Before it, there was no call.
    Raises `RemoteModelRefused`, `LeaseLost`, and `OverBudget` where there is no room for it: left to itself, that makes
    the attempt park for an operator's word or give up, as the budget's policy says.
    """
    if restricted(hop) and not intended.local:
        raise RemoteModelRefused(
            f"the task's data is restricted, and {intended.model} does not run in the house",
            hint="use a model that has `local = true`",
        )
    ledger, scope = hop.services.ledger, hop.scope
    span = CallSpan(intended.provider, intended.model, current_context(scope))
    span.say(scope.attributes())
    try:
        await ledger.reserve(hop.task, span.id, intended, span.id)
    except (LeaseLost, OverBudget):
        raise
    except BaseException:
        # It may have been written all the same.
        carry_on(insist(lambda: ledger.release(hop.task, span.id)))
        raise
    call = ModelCall(span)

    began = time.monotonic()

    async def settle(error_type: str | None) -> None:
        if call.usage is None and not call.sent:
            span.fail(error_type or "not_sent")
            await insist(lambda: ledger.release(hop.task, span.id, span))
            return
        usage = call.usage or Usage(intended.provider, intended.model, local=intended.local, basis="lost")
        if usage.seconds is None and usage.basis != "lost":
            usage = replace(usage, seconds=round(time.monotonic() - began, 3))
        report: Report = await ledger.report(usage, span)
        report = Report(span.id, usage, report.priced, span)
        span.end(usage, report.priced, error_type=error_type)
        call.booked = await insist(lambda: ledger.book(hop.task, [report]), [report])

    token = otel.attach(span.context)
    try:
        yield call
    except BaseException as error:
        otel.detach(token)
        await outlive(settle(type(error).__qualname__))
        raise
    otel.detach(token)
    await outlive(settle(None))


def configured(settings: Settings, name: str) -> ModelSettings:
    """The model of that name. Raises `Misconfigured`."""
    if name not in settings.models:
        known = ", ".join(sorted(settings.models)) or "none"
        raise Misconfigured(f"there is no model {name!r}", hint=f"name it in [models]; configured are: {known}")
    return settings.models[name]


def bound(messages: Sequence[Message]) -> int:
    """The most tokens that the messages can be: a token is at least a byte."""
    return sum(len(message.content.encode()) + len(message.role) + _PER_MESSAGE for message in messages)


def estimated(model: ModelSettings, messages: Sequence[Message], text: str) -> Usage:
    """What a call used whose server does not say."""
    given = math.ceil(sum(len(message.content.encode()) for message in messages) / BYTES_PER_TOKEN)
    made = math.ceil(len(text.encode()) / BYTES_PER_TOKEN)
    return Usage(model.provider, model.model, input=given, output=made, local=model.local, basis="estimated")


async def chat(
    hop: Hop[Any],
    name: str,
    messages: Sequence[Message],
    *,
    max_tokens: int | None = None,
    temperature: float | None = None,
    stream: bool = False,
) -> Answer:
    """Ask the configured model `name`, or the local one in its place where a budget says so. Raises `Refused`,
    `Unavailable`, `Misconfigured`, `LeaseLost`, `OverBudget`.
    """
    asking = partial(_chat, hop, messages=messages, max_tokens=max_tokens, temperature=temperature, stream=stream)
    instead = hop.services.settings.cost.local_model
    try:
        return await asking(name)
    except OverBudget as over:
        if over.policy != "downgrade" or instead in ("", name):
            raise
        hop.log.warning("model.downgraded", model=name, instead=instead, why=str(over))
    return await asking(instead, in_place_of=name)


async def _chat(
    hop: Hop[Any],
    name: str,
    *,
    messages: Sequence[Message],
    max_tokens: int | None,
    temperature: float | None,
    stream: bool,
    in_place_of: str = "",
) -> Answer:
    model = configured(hop.services.settings, name)
    most = max_tokens or model.max_tokens
    body: dict[str, Json] = {
        "model": model.model,
        "messages": [{"role": message.role, "content": message.content} for message in messages],
        "max_tokens": most,
        **({} if temperature is None else {"temperature": temperature}),
        **({"stream": True, "stream_options": {"include_usage": True}} if stream else {}),
    }
    longest = hop.services.settings.worker.handler_timeout.total_seconds()
    intended = Intended(model.provider, model.model, model.local, bound(messages), most, seconds=longest)
    async with model_call(hop, intended) as call:
        address = urlsplit(model.base_url)
        call.span.say({"server.address": address.hostname or "", "gen_ai.request.max_tokens": most})
        if in_place_of:
            call.span.say({genai.IN_PLACE_OF: in_place_of})
        heard = _Heard()
        try:
            async with asyncio.timeout(longest):
                await _ask(hop.services.http, name, model, body, call, heard)
        except BaseException as error:
            # What it told before it broke off is known, and is all that is.
            call.usage = heard.usage(model) if call.sent else None
            if isinstance(error, TimeoutError):
                raise Unavailable(f"the model {name} did not finish its answer within {longest:g} s") from None
            raise
        call.usage = _whole_usage(heard.usage(model), estimated(model, messages, heard.text))
        call.span.say({genai.FINISH_REASONS: [heard.reason]})
    return Answer(heard.text, call.usage.model, heard.reason, call.usage, call.booked[0])


def _whole_usage(told: Usage | None, guessed: Usage) -> Usage:
    """What a call used that was answered: a side of it that the server did not count, or not so that it can be read, is
    estimated.
    """
    if told is None:
        return guessed
    given, made = told.all_input or not guessed.input, told.output or not guessed.output
    if given and made:
        return told
    return replace(
        told,
        input=told.input if given else guessed.input,
        output=told.output if made else guessed.output,
        basis="estimated",
    )


@dataclass(slots=True)
class _Heard:
    """What has come of an answer so far."""

    parts: list[str] = field(default_factory=list)
    reason: str = ""
    """Why it ended; empty: it has not."""
    said: dict[str, Json] = field(default_factory=dict)
    """The answer, or the newest of what its chunks say."""
    headers: Mapping[str, str] = field(default_factory=dict)
    over: bool = False
    """All of it has come: what it says of its usage is of all of it."""

    @property
    def text(self) -> str:
        """As a hop can carry it: an answer is paid for, and must not be asked for again because it cannot be kept."""
        return plain_text("".join(self.parts), MAX_ANSWER)

    def usage(self, model: ModelSettings) -> Usage | None:
        """What it says that it used; None: nothing that can be read. Of an answer that broke off it is at least that
        much, and so estimated.
        """
        try:
            found = readers.openai(
                self.said, provider=model.provider, model=model.model, headers=self.headers, local=model.local
            )
        except UsageError:
            return None
        return found if self.over or self.reason else replace(found, basis="estimated")


async def _ask(
    http: httpx.AsyncClient, name: str, model: ModelSettings, body: Json, call: ModelCall, heard: _Heard
) -> None:
    """Ask, and write down what is heard as it comes."""
    url = model.base_url.rstrip("/") + "/chat/completions"
    if model.key and not _KEY.fullmatch(model.key):
        raise Misconfigured(
            f"the credential of the model {name} cannot be sent: it has a space, a line's end, or what is not ASCII",
            hint=f"check models.{name}.api_key",
        )
    headers = {"Authorization": f"Bearer {model.key}"} if model.key else {}
    seconds = model.timeout.total_seconds()
    timeout = httpx.Timeout(seconds, connect=min(_CONNECT_S, seconds))
    call.sent = True
    try:
        async with http.stream("POST", url, json=body, headers=headers, timeout=timeout) as response:
            _heed(name, response.status_code, call)
            heard.headers = response.headers
            if "text/event-stream" in response.headers.get("content-type", ""):
                await _streamed(name, response, heard)
            else:
                _whole(name, await _read(name, response), heard)
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout):
        call.sent = False
        raise Unavailable(f"the model {name} cannot be reached", hint=f"check models.{name}.base_url") from None
    except (httpx.InvalidURL, httpx.UnsupportedProtocol):
        call.sent = False
        raise Misconfigured(
            f"models.{name}.base_url is not a usable address", hint="it looks like http://host:port/v1"
        ) from None
    except httpx.HTTPError as error:
        raise Unavailable(f"the model {name} did not finish its answer ({type(error).__name__})") from None


def _heed(name: str, status: int, call: ModelCall) -> None:
    """Raise what a status means. Below 500 the server has refused, and no model was asked."""
    if status == 200:
        return
    if status >= 500:
        raise Unavailable(f"the server of the model {name} answered with an error of its own ({status})")
    call.sent = False
    if status in (401, 403):
        raise Misconfigured(f"the model {name} refused tracekit's credential ({status})", hint=f"check models.{name}")
    if status == 404 or 300 <= status < 400:
        raise Misconfigured(f"there is no model {name} at its address ({status})", hint=f"check models.{name}")
    if status in (408, 425, 429):
        raise Unavailable(f"the model {name} is asked too often ({status})")
    raise Refused(f"the model {name} does not take the request ({status})")


async def _chunks(name: str, response: httpx.Response) -> AsyncIterator[bytes]:
    """The body as it comes, up to a bound."""
    size = 0
    async for chunk in response.aiter_bytes():
        size += len(chunk)
        if size > MAX_ANSWER:
            raise Unavailable(f"the model {name} answered more than {MAX_ANSWER} bytes")
        yield chunk


async def _read(name: str, response: httpx.Response) -> bytes:
    return b"".join([chunk async for chunk in _chunks(name, response)])


async def _lines(name: str, response: httpx.Response) -> AsyncIterator[str]:
    begun: list[bytes] = []
    async for chunk in _chunks(name, response):
        first, *others = chunk.split(b"\n")
        begun.append(first)
        for line in others:
            yield b"".join(begun).decode(errors="replace")
            begun = [line]
    yield b"".join(begun).decode(errors="replace")


def _whole(name: str, body: bytes, heard: _Heard) -> None:
    try:
        answer = json.loads(body)
        if isinstance(answer, dict):
            heard.said, heard.over = answer, True
        choice = answer["choices"][0]
        heard.parts.append(str(choice["message"].get("content") or ""))
        heard.reason = _reason(choice.get("finish_reason") or "stop")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise Unavailable(f"what answers for the model {name} does not speak OpenAI's chat completions") from None


async def _streamed(name: str, response: httpx.Response, heard: _Heard) -> None:
    """Server-sent events, each a chunk of the answer; the last before `[DONE]` has the usage."""
    async for line in _lines(name, response):
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            heard.over = True
            break
        try:
            chunk = json.loads(data)
            if chunk.get("error"):
                raise Unavailable(f"the model {name} broke its answer off with an error")
            heard.said.update((key, value) for key, value in chunk.items() if value is not None)
            for choice in chunk.get("choices") or ():
                heard.parts.append(str((choice.get("delta") or {}).get("content") or ""))
                heard.reason = _reason(choice.get("finish_reason") or heard.reason)
        except (ValueError, TypeError, AttributeError, RecursionError):
            raise Unavailable(f"the model {name} sent a chunk that is none") from None
    if not heard.reason:
        raise Unavailable(f"the model {name} did not finish its answer")


def _reason(said: object) -> str:
    return plain_text(str(said), _LONGEST_REASON)
