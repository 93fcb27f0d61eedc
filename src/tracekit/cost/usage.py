"""Usage: what one model call spent, in four counters that share no token."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Literal

from tracekit.errors import TracekitError

Basis = Literal["lost", "estimated", "reported"]
"""How the counters are known, the least reliable first. `lost`: a call was made, and nobody saw what it used."""

MOST = 2**40
"""Tokens of one call. No model has read as many, and the sums of millions of such lies have room in a `bigint`."""

PLACES = 12
"""Decimal places of a US dollar that a provider's own price is kept to. Providers send binary fractions, whose last
digits are noise: `0.028843999999999998` is 0.028844. A token costs more than 0.00000001 dollars at any of them.
"""

_NAME = re.compile(r"[^\x00-\x1f\x7f\ud800-\udfff]{1,200}")
_UNNAMEABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_SIZES = ("input", "cache_read", "cache_write", "output", "reasoning", "requests")


class UsageError(TracekitError):
    """What was reported cannot be a call's usage, or there is none in it."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Usage:
    """What one call of a model, or a series of calls that is only reported together, spent.

    A token is in exactly one of `input`, `cache_read`, `cache_write` and `output`. Providers count otherwise (OpenAI's
    `prompt_tokens` has the cached ones in it, Anthropic's `input_tokens` has not): `tracekit.cost.readers` sorts them.
    Raises `UsageError` for what cannot be.
    """

    provider: str
    """As `genai-prices` names it, such as `openai`, `anthropic`, `google`; `ollama` or any other name elsewhere."""
    model: str
    """The model that answered, rather than an alias of it."""
    input: int = 0
    """Read by the model for the first time: neither from a cache nor into one."""
    cache_read: int = 0
    cache_write: int = 0
    output: int = 0
    reasoning: int = 0
    """Those of the output that nobody was shown."""
    requests: int = 1
    cost: Decimal | None = None
    """US dollars, where the provider or a proxy said so. None: to be found in a table of prices."""
    billed_by: str = ""
    """Who said so, such as `litellm` or `claude-code`."""
    local: bool = False
    """The model ran in the house."""
    seconds: float | None = None
    """That the call took."""
    basis: Basis = "reported"
    details: Mapping[str, int | str] = field(default_factory=dict)
    """What else a price may depend on, as `genai-prices` names it: `cache_write_1h_tokens` (inside `cache_write`),
    `input_audio_tokens`, `web_searches`, `service_tier`.
    """
    key: str | None = None
    """Names the call within its task. The same key again is a later report of the same call. None: a new call."""
    at: datetime | None = None
    """When the call was made. None: when it was reserved, or else when it is booked, by the database's clock. A later
    report does not move it.
    """

    def __post_init__(self) -> None:
        for name in ("provider", "model"):
            if not _NAME.fullmatch(getattr(self, name)):
                raise UsageError(f"a usage's {name} must be a text of 1 to 200 printable characters")
        if self.key is not None and not _NAME.fullmatch(self.key):
            raise UsageError("a usage's key must be a text of 1 to 200 printable characters")
        for name in _SIZES:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MOST:
                raise UsageError(f"a usage's {name} must be a whole number that is not negative")
        if self.reasoning > self.output:
            raise UsageError("a usage's reasoning is a part of its output and cannot be more")
        if self.cost is not None and not (self.cost.is_finite() and self.cost >= 0):
            raise UsageError("a usage's cost must be a number of US dollars that is not negative")
        for name, value in self.details.items():
            counted = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST
            if not _NAME.fullmatch(name) or not (counted or (isinstance(value, str) and _NAME.fullmatch(value))):
                raise UsageError("a usage's details must be counts and short texts by name")
        if self.seconds is not None and not (math.isfinite(self.seconds) and self.seconds >= 0):
            raise UsageError("a usage's seconds must be a number that is not negative")

    @property
    def all_input(self) -> int:
        """All that the model was given, as the conventions' `gen_ai.usage.input_tokens` counts it."""
        return self.input + self.cache_read + self.cache_write

    @property
    def tokens(self) -> int:
        """All of them."""
        return self.all_input + self.output


def named(text: object, instead: str) -> str:
    """A name from elsewhere as a usage can have it, whatever is in it; `instead` where there is none."""
    if not isinstance(text, str):
        return instead
    return _UNNAMEABLE.sub("\N{REPLACEMENT CHARACTER}", text[:200]) or instead


def dollars(value: object) -> Decimal | None:
    """A price as a provider sent it (a number of JSON, or a text), exact to `PLACES`; None for what is no price."""
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
        return None
    try:
        amount = Decimal(str(value).strip())
    except InvalidOperation:
        return None
    if not amount.is_finite() or amount < 0 or amount > 10**9:
        return None
    return plain(amount.quantize(Decimal(1).scaleb(-PLACES)))


def plain(amount: Decimal) -> Decimal:
    """`amount` without zeros at its end and without an exponent: the same number, in one spelling."""
    return Decimal(f"{amount:f}".rstrip("0").rstrip(".")) if amount.as_tuple().exponent != 0 else amount
