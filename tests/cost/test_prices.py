"""Prices: by the operator's word, the provider's, the table's; and never nothing for what nobody knows (C1)."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tracekit.config import PriceSettings
from tracekit.cost import PriceBook, Usage
from tracekit.cost.usage import dollars

AT = datetime(2026, 11, 24, 12, tzinfo=UTC)


def override(model: str, **values: Any) -> PriceSettings:
    return PriceSettings.model_validate({"model": model, **values})


@pytest.mark.parametrize(
    "usage",
    [
        Usage("openai", "gpt-99-of-nowhere", input=10, output=20),
        Usage("nobody", "model", input=10),
        Usage("ollama", "llama3.2", input=10, output=20, local=True),
        # A model in the house that is named as one that is sold.
        Usage("openai", "gpt-4o-mini", input=10, output=20, local=True),
        Usage("openai", "gpt-4o-mini", basis="lost"),
        # Things that the table has no price for must not be counted as something cheaper.
        Usage("openai", "gpt-4o-mini", input=10, output=20, details={"input_audio_tokens": 5}),
        Usage("openai", "gpt-4o-mini", input=10, output=20, details={"moon_phases": 1}),
        Usage("openai", "gpt-4o-mini", input=10, output=20, details={"service_tier": "golden"}),
        Usage("anthropic", "claude-opus-4-8", input=10, output=20, details={"inference_geo": "moon"}),
    ],
)
def test_c1_what_nobody_knows_is_unpriced_and_not_nothing(usage: Usage) -> None:
    priced = PriceBook().price(usage, AT)
    assert (priced.cost, priced.source) == (None, "unpriced")


def test_c1_the_table_names_its_version() -> None:
    priced = PriceBook().price(Usage("openai", "gpt-4o-mini", input=10, output=20), AT)
    assert priced.cost == Decimal("0.0000135")
    assert (priced.source, priced.version) == ("table", PriceBook().table)
    assert PriceBook().table.startswith("genai-prices 0.")


def test_c1_searches_are_priced_beside_tokens() -> None:
    usage = Usage("anthropic", "claude-opus-4-8", input=10, output=20, details={"web_searches": 3})
    assert PriceBook().price(usage, AT).cost == Decimal("0.00055") + 3 * Decimal("0.01")


@pytest.mark.parametrize(
    ("provider", "model", "fresh", "cost"),
    [
        ("anthropic", "claude-sonnet-4-5-20250929", 3, "0.00424755"),
        ("aws", "global.anthropic.claude-sonnet-4-5-20250929-v1:0", 3, "0.00424755"),
        # A region's inference profile costs a tenth more.
        ("aws", "us.anthropic.claude-sonnet-4-5-20250929-v1:0", 3, "0.004672305"),
        # $0.00428355 is what comes of the total of 13,256 taken for the input alone: the 12 of the output count twice.
        ("anthropic", "claude-sonnet-4-5-20250929", 13_256 - 13_216 - 25, "0.00428355"),
    ],
)
def test_c1_a_call_that_is_nearly_all_cache_costs_half_a_cent(provider: str, model: str, fresh: int, cost: str) -> None:
    """The example of "Prompt Caching Price Miscalculation" (Arize-ai/phoenix, issue of 2025-10-28), which Phoenix
    12.7.0 priced at $0.20, as if what was read from the cache had been written by the model: 3 tokens in, 13,216 read
    from the cache, 25 into it, 12 out, 13,256 in all.
    """
    usage = Usage(provider, model, input=fresh, cache_read=13_216, cache_write=25, output=12)
    assert PriceBook().price(usage, AT).cost == Decimal(cost)
    millionths = 3 * fresh + Decimal("0.3") * 13_216 + Decimal("3.75") * 25 + 15 * 12
    assert PriceBook().price(usage, AT).cost == millionths * (Decimal("1.1") if model.startswith("us.") else 1) / 10**6


def test_c1_what_the_provider_says_goes_before_the_table() -> None:
    usage = Usage("openai", "gpt-4o-mini", input=10, output=20, cost=Decimal("0.5"), billed_by="litellm")
    priced = PriceBook().price(usage, AT)
    assert (priced.cost, priced.source, priced.version) == (Decimal("0.5"), "provider", "litellm")


def test_c1_what_the_operator_says_goes_before_both() -> None:
    book = PriceBook([override("gpt-4o-mini", input=1, output=2, cache_read="0.1")])
    usage = Usage("openai", "gpt-4o-mini", input=10, cache_read=5, cache_write=1, output=20, cost=Decimal("0.5"))
    priced = book.price(usage, AT)
    assert priced.source == "override"
    assert priced.cost == Decimal("0.0000515")


def test_c1_a_subscription_and_a_model_declared_free_cost_nothing_more() -> None:
    book = PriceBook([override("claude-*", per_month=100), override("llama*", provider="ollama", free=True)])
    for usage in (Usage("anthropic", "claude-opus-4-8", input=9), Usage("ollama", "llama3.2", input=9, local=True)):
        priced = book.price(usage, AT)
        assert (priced.cost, priced.source) == (Decimal(0), "override")
    assert book.price(Usage("vllm", "llama3.2", input=9, local=True), AT).source == "unpriced"


def test_c1_an_hour_of_a_model_is_priced_by_its_time() -> None:
    book = PriceBook([override("qwen3:8b", per_hour="0.09")])
    assert book.price(Usage("ollama", "qwen3:8b", output=1, local=True, seconds=40.0), AT).cost == Decimal("0.001")
    assert book.price(Usage("ollama", "qwen3:8b", output=1, local=True), AT).source == "unpriced"


def test_c1_overrides_are_dated() -> None:
    book = PriceBook(
        [
            override("m", input=1, output=1),
            override("m", input=2, output=2, since=date(2026, 11, 1)),
            override("m*", input=9, output=9, since=date(2026, 11, 20)),
            override("m", input=3, output=3, since=date(2026, 12, 1), until=date(2027, 1, 1)),
        ]
    )
    by_day = {
        datetime(2026, 10, 31, 23, tzinfo=UTC): 1,
        datetime(2026, 11, 24, tzinfo=UTC): 2,
        datetime(2026, 12, 31, 23, tzinfo=UTC): 3,
        datetime(2027, 1, 1, tzinfo=UTC): 2,
    }
    for at, millionths in by_day.items():
        assert book.price(Usage("x", "m", input=1), at).cost == Decimal(millionths) / 1_000_000
    assert book.price(Usage("x", "mn", input=1), AT).cost == Decimal("0.000009")


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"input": 1},
        {"input": 1, "output": 1, "free": True},
        {"per_hour": 1, "per_month": 1},
        {"cache_read": 1, "free": True},
        {"input": -1, "output": 1},
        {"free": True, "since": "2026-11-02", "until": "2026-11-01"},
        {"input": float("nan"), "output": 1},
    ],
)
def test_c1_an_override_says_one_thing(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        override("m", **values)


def test_c1_numbers_of_the_configuration_are_what_was_written() -> None:
    assert override("m", input=0.1, output=0.3).input == Decimal("0.1")


@given(
    st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6)
)
def test_c3_no_call_costs_more_than_its_bound(fresh: int, read: int, short: int, long: int, output: int) -> None:
    usage = Usage(
        "anthropic",
        "claude-opus-4-8",
        input=fresh,
        cache_read=read,
        cache_write=short + long,
        output=output,
        details={"cache_write_1h_tokens": long},
    )
    book = PriceBook()
    bound, cost = book.bound(usage, AT).cost, book.price(usage, AT).cost
    assert bound is not None
    assert cost is not None
    assert cost <= bound


@pytest.mark.parametrize(
    ("said", "exact"),
    [
        (0.028843999999999998, "0.028844"),
        (1.35e-05, "0.0000135"),
        ("1.35e-05", "0.0000135"),
        ("0", "0"),
        (3, "3"),
        ("None", None),
        (None, None),
        (True, None),
        (-1, None),
        (float("nan"), None),
        ("1e400", None),
    ],
)
def test_c1_a_provider_s_price_without_the_noise_of_its_fraction(said: object, exact: str | None) -> None:
    assert dollars(said) == (None if exact is None else Decimal(exact))
    if exact is not None:
        assert str(dollars(said)) == exact
