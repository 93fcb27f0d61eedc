"""Answers as the real programs gave them, and as their providers publish them, into four counters and a price (C1)."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tracekit.cost import PriceBook, Usage, UsageError, readers

PAYLOADS = Path(__file__).parent / "payloads"
AT = datetime(2026, 11, 24, 12, tzinfo=UTC)


def captured(name: str) -> Any:
    return json.loads((PAYLOADS / name).read_text())


def counters(usage: Usage) -> tuple[int, int, int, int, int]:
    """Input, cache read, cache write, output, and the reasoning in it."""
    return (usage.input, usage.cache_read, usage.cache_write, usage.output, usage.reasoning)


def litellm() -> tuple[Any, dict[str, str]]:
    head, body = (PAYLOADS / "litellm_proxy_chat_completion.txt").read_text().split("\n\n", 1)
    return json.loads(body), dict(line.split(": ", 1) for line in head.splitlines()[1:])


# --- captured -------------------------------------------------------------------------------------------------------


def test_c1_litellm_s_headers_name_model_and_price() -> None:
    body, headers = litellm()
    usage = readers.openai(body, provider="openai", model="planner", headers=headers)
    assert (usage.provider, usage.model) == ("openai", "gpt-4o-mini")
    assert counters(usage) == (10, 0, 0, 20, 0)
    assert (usage.cost, usage.billed_by) == (Decimal("0.0000135"), "litellm")
    # The table says the same of the model behind the alias.
    bare = readers.openai(body, provider="openai", model="gpt-4o-mini", headers={})
    assert bare.model == "planner"
    priced = PriceBook().price(Usage("openai", "gpt-4o-mini", input=10, output=20), AT)
    assert (priced.cost, priced.source) == (usage.cost, "table")


def test_c1_a_price_of_nothing_for_tokens_is_no_price() -> None:
    body, headers = litellm()
    usage = readers.openai(body, provider="openai", headers={**headers, "x-litellm-response-cost": "0.0"})
    assert usage.cost is None


def test_c1_claude_code_is_billed_by_model() -> None:
    (usage,) = readers.claude_code(captured("claude_code_result.json"))
    assert (usage.provider, usage.model, usage.requests) == ("anthropic", "claude-opus-4-8[1m]", 2)
    assert counters(usage) == (24, 2048, 4096, 84, 0)
    # Two calls of 12 + 2,048 + 1,024 tokens in and 42 out. The fraction's noise is gone.
    assert usage.cost == Decimal("0.028844")
    assert usage.key == "claude-code/450a08fb-31b2-4186-8816-7c12e1a5857c/claude-opus-4-8[1m]"
    assert readers.claude_code_error(captured("claude_code_result.json")) is None
    # And the table agrees with the bill.
    bare = Usage("anthropic", usage.model, input=24, cache_read=2048, cache_write=4096, output=84)
    assert PriceBook().price(bare, AT).cost == usage.cost


def test_c1_claude_code_that_stopped_at_its_budget_has_spent_all_the_same() -> None:
    result = captured("claude_code_result_error_max_budget.json")
    assert result["usage"]["input_tokens"] == 0
    (usage,) = readers.claude_code(result)
    assert counters(usage) == (12, 1024, 2048, 42, 0)
    assert usage.cost == Decimal("0.014422")
    assert readers.claude_code_error(result) == "Reached maximum budget ($0.001)"


def test_c1_what_a_session_cost_beyond_its_models_is_booked_too() -> None:
    result = {**captured("claude_code_result.json"), "total_cost_usd": 0.05}
    _, rest = readers.claude_code(result)
    assert (rest.cost, rest.tokens, rest.requests) == (Decimal("0.021156"), 0, 0)


def test_c1_success_in_name_is_an_error_where_it_says_so() -> None:
    result = {**captured("claude_code_result.json"), "is_error": True}
    assert result["subtype"] == "success"
    assert readers.claude_code_error(result) is not None


def test_c1_a_captured_answer_of_holmesgpt_has_no_costs() -> None:
    # HolmesGPT 0.16.1 with a mock model: `metadata` has nothing but truncations.
    with pytest.raises(UsageError, match="no costs"):
        readers.holmesgpt({"analysis": "{}", "metadata": {"truncations": []}}, provider="openai", model="gpt-5")


def test_c1_holmesgpt_s_costs() -> None:
    costs = {
        "total_cost": 0.0312,
        "total_tokens": 9_100,
        "prompt_tokens": 8_500,
        "completion_tokens": 600,
        "cached_tokens": 6_000,
        "reasoning_tokens": 200,
    }
    body = {"analysis": "…", "num_llm_calls": 3, "metadata": {"costs": costs}}
    usage = readers.holmesgpt(body, provider="openai", model="gpt-5", key="holmes/1")
    assert counters(usage) == (2_500, 6_000, 0, 600, 200)
    assert (usage.cost, usage.billed_by, usage.requests, usage.key) == (Decimal("0.0312"), "holmesgpt", 3, "holmes/1")


# --- published ------------------------------------------------------------------------------------------------------


def test_c1_openai_s_cached_tokens_are_in_its_prompt_tokens() -> None:
    """The example of OpenAI's guide to prompt caching."""
    usage = {
        "prompt_tokens": 2006,
        "completion_tokens": 300,
        "total_tokens": 2306,
        "prompt_tokens_details": {"cached_tokens": 1920},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }
    found = readers.openai({"model": "gpt-4o-2024-08-06", "usage": usage}, provider="openai")
    assert counters(found) == (86, 1920, 0, 300, 0)
    # 86 at $2.50, 1,920 at $1.25 and 300 at $10 a million. All at $2.50 would be $0.008015.
    assert PriceBook().price(found, AT).cost == Decimal("0.005615")


def test_c1_a_response_s_reasoning_is_inside_its_output() -> None:
    """The example of OpenAI's reference of the Responses API, with reasoning."""
    usage = {
        "input_tokens": 75,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 1186,
        "output_tokens_details": {"reasoning_tokens": 1024},
        "total_tokens": 1261,
    }
    found = readers.openai({"model": "gpt-5", "usage": usage}, provider="openai")
    assert counters(found) == (75, 0, 0, 1186, 1024)


@pytest.mark.parametrize("details", [{"reasoning_tokens": 100}, {}], ids=["xai", "google"])
def test_c1_reasoning_that_only_the_total_counts_is_output(details: dict[str, int]) -> None:
    usage = {
        "prompt_tokens": 32,
        "completion_tokens": 9,
        "total_tokens": 141,
        "completion_tokens_details": details,
    }
    found = readers.openai({"model": "grok-4", "usage": usage}, provider="x-ai")
    assert counters(found) == (32, 0, 0, 109, 100)


def test_c1_both_kinds_of_cache_through_a_proxy() -> None:
    """The same call: 3,084 tokens in OpenAI's counting are 12 + 1,024 + 2,048 in Anthropic's."""
    usage = {
        "prompt_tokens": 3084,
        "completion_tokens": 42,
        "total_tokens": 3126,
        "prompt_tokens_details": {"cached_tokens": 1024, "cache_creation_tokens": 2048},
        "cache_creation_input_tokens": 2048,
        "cache_read_input_tokens": 1024,
    }
    found = readers.openai({"model": "claude-opus-4-8", "usage": usage}, provider="anthropic")
    assert counters(found) == (12, 1024, 2048, 42, 0)
    assert PriceBook().price(found, AT).cost == Decimal("0.014422")


@pytest.mark.parametrize(
    ("prompt", "read", "written", "completion", "total"), [(3, 13_216, 25, 12, 13_256), (3, 7_917, 350, 442, 8_712)]
)
def test_c1_what_only_the_total_counts_is_not_output_where_the_cache_explains_it(
    prompt: int, read: int, written: int, completion: int, total: int
) -> None:
    """Two examples from Phoenix's tracker (Arize-ai/phoenix, issues of 2025-10-28 and 2026-01-05): it took the total
    less the prompt for the output, $0.20 for half a cent.
    """
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": total,
        "cache_read_input_tokens": read,
        "cache_creation_input_tokens": written,
    }
    found = readers.openai({"model": "claude-sonnet-4-5", "usage": usage}, provider="anthropic")
    assert counters(found) == (prompt, read, written, completion, 0)


def test_c1_anthropic_excludes_both_kinds_and_tells_how_long_they_are_kept() -> None:
    """The example of Anthropic's guide to prompt caching, of an hour's and five minutes' cache."""
    usage = {
        "input_tokens": 2048,
        "cache_read_input_tokens": 1800,
        "cache_creation_input_tokens": 248,
        "output_tokens": 503,
        "cache_creation": {"ephemeral_5m_input_tokens": 148, "ephemeral_1h_input_tokens": 100},
        "service_tier": "standard",
    }
    found = readers.anthropic({"model": "claude-opus-4-8", "usage": usage})
    assert counters(found) == (2048, 1800, 248, 503, 0)
    assert found.details == {"cache_write_1h_tokens": 100}
    # $5, $0.50, $6.25 for five minutes and $10 for an hour, $25 a million.
    millionths = 2048 * 5 + 1800 * Decimal("0.5") + 148 * Decimal("6.25") + 100 * 10 + 503 * 25
    assert PriceBook().price(found, AT).cost == millionths / 1_000_000


def test_c1_a_stream_of_anthropic_s() -> None:
    """The events of Anthropic's guide to streaming; the last delta has the whole output."""
    events = [
        {
            "type": "message_start",
            "message": {"model": "claude-opus-4-8", "usage": {"input_tokens": 25, "output_tokens": 1}},
        },
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello"}},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 15}},
        {"type": "message_stop"},
    ]
    found = readers.anthropic_stream(events)
    assert (found.model, counters(found)) == ("claude-opus-4-8", (25, 0, 0, 15, 0))


def test_c1_ollama_counts_what_it_read_and_how_long_it_took() -> None:
    """The example of Ollama's reference of `/api/chat`."""
    body = {
        "model": "llama3.2",
        "created_at": "2023-08-04T19:22:45.499127Z",
        "done": True,
        "total_duration": 4883583458,
        "load_duration": 1334875,
        "prompt_eval_count": 26,
        "prompt_eval_duration": 342546000,
        "eval_count": 282,
        "eval_duration": 4535599000,
    }
    found = readers.ollama(body)
    assert (found.provider, found.model, found.local) == ("ollama", "llama3.2", True)
    assert counters(found) == (26, 0, 0, 282, 0)
    assert found.seconds == pytest.approx(4.883583458)
    assert PriceBook().price(found, AT).source == "unpriced"


def test_c1_openrouter_says_what_it_takes() -> None:
    usage = {"prompt_tokens": 194, "completion_tokens": 2, "total_tokens": 196, "cost": 0.00095}
    found = readers.openai({"model": "x/y", "usage": usage}, provider="openrouter")
    assert (found.cost, found.billed_by) == (Decimal("0.00095"), "openrouter")


@pytest.mark.parametrize("body", [None, [], "x", {}, {"usage": None}, {"usage": []}])
def test_c1_what_has_no_usage_says_so(body: Any) -> None:
    for read in (
        lambda: readers.openai(body, provider="openai"),
        lambda: readers.anthropic(body),
        lambda: readers.ollama(body),
        lambda: readers.claude_code(body),
        lambda: readers.holmesgpt(body, provider="openai", model="m"),
    ):
        with pytest.raises(UsageError):
            read()


def test_c1_what_cannot_be_a_usage_is_refused() -> None:
    bad: list[dict[str, Any]] = [
        {"input": -1},
        {"input": 1.5},
        {"output": 3, "reasoning": 4},
        {"cost": Decimal("-1")},
        {"cost": Decimal("NaN")},
        {"seconds": float("inf")},
        {"key": "a\x00b"},
        {"input": 2**60},
        {"details": {"web_searches": -1}},
        {"details": {"web_searches": 1.5}},
        {"details": {"service_tier": "a\x00b"}},
    ]
    for values in bad:
        with pytest.raises(UsageError):
            Usage("openai", "gpt-5", **values)
    with pytest.raises(UsageError):
        Usage("", "gpt-5")


@pytest.mark.parametrize("usage", [{}, {"prompt_tokens": "10"}, {"prompt_tokens": -1}, {"tokens_in": 10}])
def test_c1_counters_that_nobody_can_read_are_no_usage_of_nothing(usage: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="counts no token"):
        readers.openai({"usage": usage}, provider="test", model="m")


BAD: Any = "12"


@pytest.mark.parametrize(
    ("read", "counted"),
    [
        (lambda: readers.openai({"usage": {"prompt_tokens": BAD, "completion_tokens": 5}}, provider="x"), (0, 0, 0, 5)),
        (
            lambda: readers.openai(
                {"usage": {"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": BAD}}}, provider="x"
            ),
            (9, 0, 0, 0),
        ),
        (lambda: readers.anthropic({"usage": {"input_tokens": BAD, "output_tokens": 5}}), (0, 0, 0, 5)),
        (lambda: readers.ollama({"prompt_eval_count": BAD, "eval_count": 5}), (0, 0, 0, 5)),
        (
            lambda: readers.claude_code(
                {"type": "result", "modelUsage": {"m": {"inputTokens": BAD, "outputTokens": 5}}}
            )[0],
            (0, 0, 0, 5),
        ),
        (
            lambda: readers.holmesgpt(
                {"metadata": {"costs": {"prompt_tokens": BAD, "completion_tokens": 5}}}, provider="x", model="m"
            ),
            (0, 0, 0, 5),
        ),
    ],
)
def test_c1_a_counter_that_cannot_be_read_is_not_said_to_be_nothing(
    read: Callable[[], Usage], counted: tuple[int, ...]
) -> None:
    found = read()
    assert (counters(found)[:4], found.basis) == (counted, "estimated")


@pytest.mark.parametrize("name", ["m\x00\ud800" + "x" * 300, 7, None, ""])
def test_c1_no_name_is_worth_a_usage(name: Any) -> None:
    body = {"model": name, "usage": {"prompt_tokens": 1, "completion_tokens": 1}, "service_tier": "a\x00"}
    headers = {"x-litellm-version": "1", "x-litellm-model-name": "who\x01/what\x02"}
    assert readers.openai(body, provider="x", headers=headers).model == "what\ufffd"
    for found in (
        readers.openai(body, provider="x"),
        readers.anthropic({"model": name, "usage": {"input_tokens": 1, "speed": "\x00"}}),
        readers.ollama({"model": name, "eval_count": 1}),
        readers.claude_code({"type": "result", "session_id": name, "modelUsage": {str(name): {"inputTokens": 1}}})[0],
    ):
        assert found.tokens > 0


def test_c1_millions_of_lies_have_room_in_the_totals() -> None:
    lie = 2**63 // 4_000_000
    with pytest.raises(UsageError, match="input"):
        Usage("test", "m", input=lie)
    assert Usage("test", "m", input=10**12).input == 10**12
