"""Money to read."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest

from tracekit.cost.limits import about, shown
from tracekit.cost.money import dollars, in_dollars
from tracekit.cost.spending import Spending


@pytest.mark.parametrize(
    ("amount", "read"),
    [
        ("0", "$0"), ("0.00", "$0"), ("4.98", "$4.98"), ("4.985", "$4.98"), ("1234.5", "$1,234.50"), ("0.5", "$0.50"),
        ("0.003", "$0.0030"), ("0.99967", "$0.9997"), ("0.000012", "$0.000012"), ("0.000000004", "$0.0000000040"),
        ("-5", "-$5.00"), ("-0.00033", "-$0.00033"),
    ],
)  # fmt: skip
def test_c1_an_amount_is_rounded_to_what_matters_and_alike_everywhere(amount: str, read: str) -> None:
    assert dollars(Decimal(amount)) == shown("usd", Decimal(amount)) == about("usd", Decimal(amount)) == read


def test_c1_a_sum_says_what_is_not_in_it() -> None:
    assert [in_dollars(Decimal(cost), unpriced) for cost, unpriced in (("1", 0), ("1", 2), ("0", 2))] == [
        "$1.00", "$1.00 + 2 unpriced", "2 unpriced",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("calls", "unpriced", "cost", "words"),
    [
        (0, 0, "0", "no model was called"),
        (1, 1, "0", "no price known, 1,200 tokens in 1 call, 1 without a price"),
        (2, 0, "0", "$0, 1,200 tokens in 2 calls"),
    ],
)
def test_c1_what_was_spent_in_words(calls: int, unpriced: int, cost: str, words: str) -> None:
    assert Spending(datetime(2026, 11, 24, tzinfo=UTC), calls, unpriced, 1_200, Decimal(cost)).words == words
