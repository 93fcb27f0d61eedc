"""What providers and programs answer, read into four counters (see `Usage`).

Each reader takes the parsed JSON of an answer, as it came, and knows how its source counts:

==================  ==============================  ===============================  ==================
source              input counts the cache          output counts the reasoning      price
==================  ==============================  ===============================  ==================
OpenAI              yes                             yes                              no
compatible others   mostly; then it is less         not all (`total_tokens` tells)   OpenRouter, LiteLLM
Anthropic           no, neither kind                yes                              no
Ollama              what was cached is not counted  yes                              no
Claude Code         no, neither kind                yes                              yes, by model
HolmesGPT           yes                             yes                              yes
==================  ==============================  ===============================  ==================

An answer without usage raises `UsageError`. A price of nothing for tokens that were used is no price: proxies say 0
where they know none. A usage of which one counter can be read and another cannot is `estimated`: what is not known
counts as nothing in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from tracekit.cost.usage import MOST, Basis, Usage, UsageError, dollars, named

Json = Any


def openai(
    body: Json, *, provider: str, model: str = "", headers: Mapping[str, str] | None = None, local: bool = False
) -> Usage:
    """A chat completion, a response or an embedding of an OpenAI-compatible server.

    `provider` and `model` are what was asked; what the answer says of itself (LiteLLM's headers name the model behind
    an alias, and the price) goes before them.
    """
    answer = _object(body)
    usage = answer.get("usage")
    if not isinstance(usage, dict):
        raise UsageError(f"{provider} answered without a usage", hint="ask for it: `stream_options.include_usage`")
    given, made = _count(usage, "prompt_tokens", "input_tokens"), _count(usage, "completion_tokens", "output_tokens")
    inside = _object(usage.get("prompt_tokens_details") or usage.get("input_tokens_details"))
    outside = _object(usage.get("completion_tokens_details") or usage.get("output_tokens_details"))
    read = _count(inside, "cached_tokens") or _count(usage, "prompt_cache_hit_tokens", "cache_read_input_tokens")
    written = _count(inside, "cache_write_tokens", "cache_creation_tokens") or _count(
        usage, "cache_creation_input_tokens"
    )
    # Who passes Anthropic's own counters on has not added the cache to the input.
    fresh = given - read - written if given >= read + written else given
    reasoning = _count(outside, "reasoning_tokens")
    # xAI and Google leave the reasoning out of the completion; only the total has it.
    unseen = _count(usage, "total_tokens") - (fresh + read + written) - made
    if unseen > 0 and (reasoning in (0, unseen)):
        made, reasoning = made + unseen, unseen
    if not (fresh or read or written or made):
        # Nothing is what counters of other names and kinds come to, and would be believed to cost nothing.
        raise UsageError(f"{provider} answered with a usage that counts no token")
    details: dict[str, int | str] = {}
    for name, source, key in (
        ("input_audio_tokens", inside, "audio_tokens"),
        ("output_audio_tokens", outside, "audio_tokens"),
    ):
        if audio := _count(source, key):
            details[name] = audio
    tier = answer.get("service_tier")
    if isinstance(tier, str) and tier not in ("default", "standard", "auto", ""):
        details["service_tier"] = named(tier[:50], "")
    provider, name, said, billed_by = _behind(answer, usage, headers or {}, provider, model)
    cost = _price(said, given + made)
    return Usage(
        provider,
        name,
        input=fresh,
        cache_read=read,
        cache_write=written,
        output=made,
        reasoning=min(reasoning, made),
        cost=cost,
        billed_by=billed_by if cost is not None else "",
        local=local,
        basis=_basis((usage, _OPENAI), (inside, _OPENAI_INSIDE), (outside, ("reasoning_tokens",))),
        details=details,
    )


def _behind(
    answer: Mapping[str, Json], usage: Mapping[str, Json], headers: Mapping[str, str], provider: str, model: str
) -> tuple[str, str, Decimal | None, str]:
    """Provider, model, price and whose price it is, as the answer says."""
    lower = {name.lower(): value for name, value in headers.items()}
    name = named(answer.get("model"), model)
    if "x-litellm-version" in lower or "x-litellm-call-id" in lower:
        behind = lower.get("x-litellm-model-name", "")
        whose, _, rest = behind.partition("/")
        if rest:
            provider, name = named(whose, provider), named(rest, name)
        elif behind:
            name = named(behind, name)
        # Of a stream the headers come before the price: the last chunk has it.
        cost = litellm_price(headers)
        return provider, name or "unknown", dollars(usage.get("cost")) if cost is None else cost, "litellm"
    cost = dollars(usage.get("cost"))
    return provider, name or "unknown", cost, provider


def litellm_price(headers: Mapping[str, str]) -> Decimal | None:
    """The price in the headers of LiteLLM's proxy; None where there is none, nothing among them."""
    lower = {name.lower(): value for name, value in headers.items()}
    return dollars(lower.get("x-litellm-response-cost")) or None


def anthropic(body: Json, *, provider: str = "anthropic", model: str = "") -> Usage:
    """A message of Anthropic's API."""
    answer = _object(body)
    usage = answer.get("usage")
    if not isinstance(usage, dict):
        raise UsageError("Anthropic answered without a usage")
    return _anthropic(usage, provider, named(answer.get("model"), model))


def anthropic_stream(events: Iterable[Json], *, provider: str = "anthropic", model: str = "") -> Usage:
    """The events of a streamed message: `message_start` has the input, each `message_delta` the output so far."""
    usage: dict[str, Json] = {}
    for event in events:
        found = _object(event)
        message = _object(found.get("message"))
        model = named(message.get("model"), model)
        for part in (message.get("usage"), found.get("usage")):
            usage.update({name: value for name, value in _object(part).items() if value is not None})
    if not usage:
        raise UsageError("Anthropic's stream ended without a usage")
    return _anthropic(usage, provider, model)


def _anthropic(usage: Mapping[str, Json], provider: str, model: str) -> Usage:
    details: dict[str, int | str] = {}
    if long := _count(_object(usage.get("cache_creation")), "ephemeral_1h_input_tokens"):
        details["cache_write_1h_tokens"] = long
    if searches := _count(_object(usage.get("server_tool_use")), "web_search_requests"):
        details["web_searches"] = searches
    for name in ("service_tier", "speed", "inference_geo"):
        value = usage.get(name)
        if isinstance(value, str) and value not in ("", "standard", "not_available", "global"):
            details[name] = named(value[:50], "")
    return Usage(
        provider,
        model or "unknown",
        input=_count(usage, "input_tokens"),
        cache_read=_count(usage, "cache_read_input_tokens"),
        cache_write=_count(usage, "cache_creation_input_tokens"),
        output=_count(usage, "output_tokens"),
        reasoning=min(
            _count(_object(usage.get("output_tokens_details")), "thinking_tokens"), _count(usage, "output_tokens")
        ),
        basis=_basis((usage, _ANTHROPIC)),
        details=details,
    )


def ollama(body: Json, *, provider: str = "ollama", local: bool = True) -> Usage:
    """An answer of Ollama's own API (`/api/chat`, `/api/generate`), or the last line of its stream.

    A prompt that it still had in its cache is not counted at all.
    """
    answer = _object(body)
    if "eval_count" not in answer and "prompt_eval_count" not in answer:
        raise UsageError("Ollama's answer is not its last: it has no counts")
    took = answer.get("total_duration")
    return Usage(
        provider,
        named(answer.get("model"), "unknown"),
        input=_count(answer, "prompt_eval_count"),
        output=_count(answer, "eval_count"),
        local=local,
        basis=_basis((answer, ("prompt_eval_count", "eval_count"))),
        seconds=took / 1e9 if isinstance(took, int) and not isinstance(took, bool) and took >= 0 else None,
    )


def claude_code(result: Json) -> list[Usage]:
    """The result of a headless Claude Code session (`--output-format json`, or the last line of `stream-json`): one
    usage for each model.

    The bill is `modelUsage`, whatever the session came to: one that stopped at its budget says zeros in `usage`. What
    `total_cost_usd` has beyond it is a usage of its own. `claude_code_error` says whether the session failed.
    """
    answer = _object(result)
    if answer.get("type") != "result":
        raise UsageError("this is not the result of a Claude Code session", hint="it is the last line of its stream")
    session = named(answer.get("session_id"), "")[:100] or None
    turns = max(1, _count(answer, "num_turns"))
    seconds = _count(answer, "duration_api_ms") / 1000
    by_model = sorted(
        ((named(name, "claude-code"), _object(of)) for name, of in _object(answer.get("modelUsage")).items()),
        key=lambda one: -_count(one[1], "outputTokens"),
    )
    found = []
    for number, (model, of) in enumerate(by_model):
        given, read = _count(of, "inputTokens"), _count(of, "cacheReadInputTokens")
        written, made = _count(of, "cacheCreationInputTokens"), _count(of, "outputTokens")
        cost = _price(dollars(of.get("costUSD")), given + read + written + made)
        searches = _count(of, "webSearchRequests")
        found.append(
            Usage(
                "anthropic",
                model,
                input=given,
                cache_read=read,
                cache_write=written,
                output=made,
                # How many requests each model got is not said: the turns are the one's that did most of the work.
                requests=turns if number == 0 else 1,
                cost=cost,
                billed_by="claude-code" if cost is not None else "",
                seconds=seconds if number == 0 else None,
                basis=_basis((of, _CLAUDE_CODE)),
                details={"web_searches": searches} if searches else {},
                key=f"claude-code/{session}/{model}"[:200] if session else None,
            )
        )
    total = dollars(answer.get("total_cost_usd"))
    if not found and not (total or isinstance(answer.get("usage"), dict)):
        raise UsageError("the session's result has neither a usage nor a price")
    if not found:
        of_all = _anthropic(_object(answer.get("usage")), "anthropic", "claude-code")
        cost = _price(total, 1 if total else of_all.tokens)
        return [
            Usage(
                "anthropic",
                "claude-code",
                input=of_all.input,
                cache_read=of_all.cache_read,
                cache_write=of_all.cache_write,
                output=of_all.output,
                requests=turns,
                cost=cost,
                billed_by="claude-code" if cost is not None else "",
                seconds=seconds,
                key=f"claude-code/{session}" if session else None,
            )
        ]
    rest = (total or Decimal(0)) - sum((usage.cost or Decimal(0) for usage in found), Decimal(0))
    if rest > Decimal("1e-9"):
        key = f"claude-code/{session}/rest" if session else None
        found.append(Usage("anthropic", "claude-code", requests=0, cost=rest, billed_by="claude-code", key=key))
    return found


def claude_code_error(result: Json) -> str | None:
    """Why a Claude Code session failed, or None. `is_error` says whether it did; `subtype` may say success even so."""
    answer = _object(result)
    if answer.get("is_error") is False:
        return None
    errors = answer.get("errors")
    told = "; ".join(str(error) for error in errors) if isinstance(errors, list) else ""
    return (told or str(answer.get("subtype") or answer.get("result") or "it did not say why"))[:500]


def holmesgpt(body: Json, *, provider: str, model: str, key: str | None = None) -> Usage:
    """An answer of HolmesGPT's `/api/chat`, whose `metadata.costs` are optional. It does not say which model it uses:
    that is its configuration's.
    """
    answer = _object(body)
    costs = _object(answer.get("metadata")).get("costs")
    if not isinstance(costs, dict):
        raise UsageError("HolmesGPT's answer has no costs")
    given, made, read = (_count(costs, name) for name in ("prompt_tokens", "completion_tokens", "cached_tokens"))
    cost = _price(dollars(costs.get("total_cost")), given + made)
    return Usage(
        provider,
        model,
        input=max(0, given - read),
        cache_read=min(read, given),
        output=made,
        reasoning=min(_count(costs, "reasoning_tokens"), made),
        requests=max(1, _count(answer, "num_llm_calls")),
        cost=cost,
        billed_by="holmesgpt" if cost is not None else "",
        basis=_basis((costs, _HOLMESGPT)),
        key=key,
    )


def _price(cost: Decimal | None, tokens: int) -> Decimal | None:
    return None if cost is not None and cost == 0 and tokens else cost


def _object(value: Json) -> dict[str, Json]:
    return value if isinstance(value, dict) else {}


_OPENAI = (
    "prompt_tokens", "input_tokens", "completion_tokens", "output_tokens", "prompt_cache_hit_tokens",
    "cache_read_input_tokens", "cache_creation_input_tokens",
)  # fmt: skip
_OPENAI_INSIDE = ("cached_tokens", "cache_write_tokens", "cache_creation_tokens")
_ANTHROPIC = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "output_tokens")
_CLAUDE_CODE = ("inputTokens", "cacheReadInputTokens", "cacheCreationInputTokens", "outputTokens")
_HOLMESGPT = ("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens")


def _basis(*counted: tuple[Mapping[str, Json], Iterable[str]]) -> Basis:
    """`estimated` where a counter is there and is no count."""
    unreadable = any(of.get(name) is not None and _counted(of[name]) is None for of, names in counted for name in names)
    return "estimated" if unreadable else "reported"


def _count(of: Mapping[str, Json], *names: str) -> int:
    """The first of these that is a count; 0 where none is."""
    return next((count for name in names if (count := _counted(of.get(name))) is not None), 0)


def _counted(value: Json) -> int | None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST else None
