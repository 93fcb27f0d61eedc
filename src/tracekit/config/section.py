"""What sections of the configuration are made of: strict and frozen, spans of time, exact amounts of money."""

from __future__ import annotations

import re
from datetime import timedelta
from decimal import Decimal
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from tracekit.errors import TracekitError


class ConfigError(TracekitError):
    """The configuration cannot be used."""

    exit_code = 2


class Section(BaseModel):
    """A table of the file: nothing in it that is not known, and nothing changed once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _seconds(value: object) -> object:
    # A variable is a text, also where it says a number.
    if isinstance(value, str) and re.fullmatch(r"\d+(\.\d+)?", value.strip()):
        return float(value)
    return value


Span = Annotated[timedelta, BeforeValidator(_seconds), Field(gt=timedelta(0))]


def _exact(value: object) -> object:
    # TOML's numbers are binary fractions; their shortest spelling is what somebody wrote.
    return str(value) if isinstance(value, float) else value


Dollars = Annotated[Decimal, BeforeValidator(_exact), Field(ge=0, allow_inf_nan=False)]
"""US dollars, exact."""
