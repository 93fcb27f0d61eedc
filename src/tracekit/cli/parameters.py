"""Types of options that several commands take."""

from __future__ import annotations

import re
from datetime import timedelta

import click

_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(min|[smhdw])\s*")


class DurationType(click.ParamType[timedelta]):
    """`90s`, `15m`, `1h30m`, `7d`; a bare number is seconds."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """The duration that `value` says; anything else is a usage error."""
        if isinstance(value, timedelta):
            return value
        text = str(value).strip().lower()
        try:
            if re.fullmatch(r"\d+(\.\d+)?", text):
                seconds = float(text)
            elif re.fullmatch(f"(?:{_PART.pattern})+", text):
                seconds = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
            else:
                self.fail(f"{value!r} is not a duration such as 90s, 15m, 1h30m or 7d", param, ctx)
            time = timedelta(seconds=seconds)
        except OverflowError:
            self.fail(f"{value!r} is too long", param, ctx)
        if not time:
            self.fail("must be longer than nothing", param, ctx)
        return time


DURATION = DurationType()
