"""Prices: what a call cost, by the operator's word, the provider's, or a table; or that nobody knows.

In this order: a price that the configuration sets; what the provider or a proxy said; the table of `genai-prices`. What
none of them knows is unpriced (a `cost` of None), never nothing: a local model costs nothing when somebody has said so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from typing import Any, Literal

from tracekit.config import PriceSettings
from tracekit.cost.usage import Usage, plain

Source = Literal["provider", "table", "override", "unpriced"]

_MILLION = Decimal(1_000_000)
_HOUR = Decimal(3_600)


@dataclass(frozen=True, slots=True)
class Priced:
    """What a call cost, and who says so."""

    cost: Decimal | None
    """US dollars, exact. None: unpriced."""
    source: Source
    version: str | None = None
    """The table with its version, the configuration's entry, or whose bill it is."""


UNPRICED = Priced(None, "unpriced")


class PriceBook:
    """The prices that apply here."""

    def __init__(self, overrides: Sequence[PriceSettings] = ()) -> None:
        self._overrides = tuple(overrides)

    @property
    def table(self) -> str:
        """The table and its version."""
        return _table().version

    def price(self, usage: Usage, at: datetime) -> Priced:
        """What `usage` cost at the prices of `at`. The first use of the table reads it, which takes half a second."""
        if (override := self.override(usage.provider, usage.model, at)) is not None:
            cost = _by_override(override, usage)
            return UNPRICED if cost is None else Priced(plain(cost), "override", override.label)
        if usage.cost is not None:
            return Priced(usage.cost, "provider", usage.billed_by or usage.provider)
        # A model in the house may have the name of one that is sold, and its price is not the seller's.
        if usage.local or usage.basis == "lost":
            return UNPRICED
        cost = _table().price(usage, at)
        return UNPRICED if cost is None else Priced(plain(cost), "table", self.table)

    def bound(self, usage: Usage, at: datetime) -> Priced:
        """The most that a call may cost which reads and writes at most as many tokens as `usage` has, whether its input
        is new or goes into a cache, which some providers charge more for.
        """
        into_cache = replace(usage, input=0, cache_read=0, cache_write=usage.all_input, details={})
        kept_long = replace(into_cache, details={"cache_write_1h_tokens": usage.all_input})
        fresh = replace(usage, input=usage.all_input, cache_read=0, cache_write=0, details={})
        found = [self.price(one, at) for one in (fresh, into_cache, kept_long)]
        return max((one for one in found if one.cost is not None), key=lambda one: one.cost or 0, default=UNPRICED)

    def override(self, provider: str, model: str, at: datetime) -> PriceSettings | None:
        """What the configuration says of this model on that day (UTC): the entry that names it most closely, and of
        those the one that began last.
        """
        day = at.astimezone(UTC).date()
        fitting = [
            (len(entry.model.rstrip("*")), not entry.model.endswith("*"), entry.provider != "*", since, number)
            for number, entry in enumerate(self._overrides)
            for since in [entry.since.toordinal() if entry.since else 0]
            if entry.names(provider, model) and entry.holds(day)
        ]
        return self._overrides[max(fitting)[-1]] if fitting else None


def _by_override(entry: PriceSettings, usage: Usage) -> Decimal | None:
    if entry.free or entry.per_month is not None:
        return Decimal(0)
    if entry.per_hour is not None:
        return None if usage.seconds is None else entry.per_hour * Decimal(str(usage.seconds)) / _HOUR
    cost = (entry.per_request or Decimal(0)) * usage.requests
    if entry.input is None or entry.output is None:
        return cost
    if usage.basis == "lost":
        return None
    cached = entry.input if entry.cache_read is None else entry.cache_read
    written = entry.input if entry.cache_write is None else entry.cache_write
    tokens = (
        entry.input * usage.input
        + cached * usage.cache_read
        + written * usage.cache_write
        + entry.output * usage.output
    )
    return cost + tokens / _MILLION


# --- the table ------------------------------------------------------------------------------------------------------


class _Table:
    """`genai-prices`, asked so that it answers only what it knows."""

    def __init__(self) -> None:
        # It takes as long to import as all of tracekit, and most commands ask for no price.
        import genai_prices
        from genai_prices.data_units import unit_data

        self._calc: Any = genai_prices.calc_price
        self._usage: Any = genai_prices.Usage
        self._price_keys = {name: str(unit["price_key"]) for name, unit in unit_data.items()}
        self.version = f"genai-prices {genai_prices.__version__}"

    def price(self, usage: Usage, at: datetime) -> Decimal | None:
        counts: dict[str, int] = {
            "input_tokens": usage.all_input,
            "cache_read_tokens": usage.cache_read,
            "cache_write_tokens": usage.cache_write,
            "output_tokens": usage.output,
        }
        context: dict[str, str] = {}
        special: list[str] = []
        for name, value in usage.details.items():
            if isinstance(value, str):
                context["processing" if value == "batch" else name] = value
            elif value and name not in self._price_keys:
                return None
            elif value:
                counts[name] = value
                special.append(self._price_keys[name])
        try:
            found = self._calc(
                self._usage(**{name: count for name, count in counts.items() if count}),
                usage.model,
                provider_id=usage.provider,
                genai_request_timestamp=at,
                price_context=context or None,
            )
        except (LookupError, ValueError):
            return None
        # What it has no price for it counts as something cheaper, or as nothing.
        needed = [*special]
        needed += ["input_mtok"] if usage.all_input else []
        needed += ["output_mtok"] if usage.output else []
        if any(getattr(found.model_price, key) is None for key in needed):
            return None
        variants = found.model.price_variants or ()
        if any(not any(variant.when.get(key) == value for variant in variants) for key, value in context.items()):
            return None
        cost: Decimal = found.total_price
        return cost


@cache
def _table() -> _Table:
    return _Table()


def warm() -> None:
    """Read the table, so that the first call to be priced does not wait for it."""
    _table()
