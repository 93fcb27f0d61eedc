"""Models that can be asked, what they cost, and how spending is counted."""

from __future__ import annotations

import os
from datetime import date, timedelta
from typing import Annotated, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, Field, SecretStr, model_validator

from tracekit.config.section import Dollars, Section, Span


class ModelSettings(Section):
    """A model that `model.chat` can ask: any server that speaks OpenAI's chat completions."""

    base_url: Annotated[str, Field(pattern=r"^https?://[^?#\s]+$")]
    """Its address, up to and including `/v1`. Without a query, which would be shown: a credential is `api_key`."""
    model: Annotated[str, Field(min_length=1, max_length=200)]
    """The name that the server knows it by."""
    provider: Annotated[str, Field(min_length=1, max_length=100)] = "openai"
    """Whose model it is, for its price: as `genai-prices` names it. What a LiteLLM proxy says goes before it."""
    api_key: SecretStr = SecretStr("")
    """The credential. Better in a variable: `api_key_env`."""
    api_key_env: str | None = None
    """Environment variable that holds it."""
    local: bool = False
    """It runs in the house. Restricted data goes to no other model."""
    max_tokens: Annotated[int, Field(ge=1, le=10_000_000)] = 4_096
    """Tokens of an answer where the call does not say; a budget reserves as many."""
    timeout: Span = timedelta(minutes=5)
    """The longest that an answer may take to begin, or to go on."""

    @property
    def key(self) -> str:
        """The credential itself; empty where there is none."""
        return os.environ.get(self.api_key_env, "") if self.api_key_env else self.api_key.get_secret_value()


class PriceSettings(Section):
    """A price that goes before all others for some models and a time: for tokens, an hour, a month, or nothing."""

    model: Annotated[str, Field(min_length=1, max_length=200)]
    """The model's name; `*` at the end stands for any rest."""
    provider: Annotated[str, Field(min_length=1, max_length=100)] = "*"
    since: date | None = None
    """The first day (UTC) on which it holds. None: ever since."""
    until: date | None = None
    """The first day on which it holds no more."""
    input: Dollars | None = None
    """US dollars for a million tokens; `output` with it."""
    cache_read: Dollars | None = None
    """None: as `input`."""
    cache_write: Dollars | None = None
    """None: as `input`."""
    output: Dollars | None = None
    per_request: Dollars | None = None
    """US dollars for a request, beside its tokens or alone."""
    per_hour: Dollars | None = None
    """US dollars for an hour of the model's time: electricity, or a rented machine."""
    per_month: Dollars | None = None
    """A subscription: a call costs nothing more, and the report shows the month's price by itself."""
    free: bool = False
    """It costs nothing, as you say."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.input is None) != (self.output is None):
            raise ValueError("input and output go together")
        if self.input is None and (self.cache_read is not None or self.cache_write is not None):
            raise ValueError("cache_read and cache_write need input and output")
        by_use = self.input is not None or self.per_request is not None
        if by_use + (self.per_hour is not None) + (self.per_month is not None) + self.free != 1:
            raise ValueError("give input and output (and per_request), or per_hour, or per_month, or free")
        if self.since and self.until and self.until <= self.since:
            raise ValueError("until must come after since")
        return self

    @property
    def label(self) -> str:
        """What a call is marked with that was priced by it."""
        since = f" since {self.since}" if self.since else ""
        return f"{self.model if self.provider == '*' else f'{self.provider}/{self.model}'}{since}"

    def names(self, provider: str, model: str) -> bool:
        """Whether it is about this model."""
        ours, wanted = self.model.lower(), model.lower()
        fits = wanted.startswith(ours[:-1]) if ours.endswith("*") else wanted == ours
        return fits and self.provider.lower() in ("*", provider.lower())

    def holds(self, day: date) -> bool:
        """Whether it applies on a day."""
        return (self.since is None or self.since <= day) and (self.until is None or day < self.until)


def _zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"there is no time zone {value!r}: it looks like Europe/Amsterdam") from None
    return value


class CostSettings(Section):
    """How spending is counted."""

    time_zone: Annotated[str, AfterValidator(_zone)] = "UTC"
    """Whose days and weeks reports and budgets go by, such as `Europe/Amsterdam`."""
    local_model: str = ""
    """The model of `[models]`, one with `local = true`, that is asked in place of another whose budget has no room and
    whose policy is `downgrade`. Empty: such a call is refused."""
    warn_at: Annotated[float, Field(ge=0, le=1)] = 0.5
    """The share of a budget that must be spent before a warning says that it does not last at this pace. Less warns
    sooner, and more often of what would have come right by itself."""
