"""Printing: tables for people, JSON for scripts."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from tracekit.workers.words import one_line

Command = TypeVar("Command", bound=Callable[..., Any])

STATES = {
    "open": "cyan",
    "done": "green",
    "failed": "red",
    "dead": "bold red",
    "expired": "yellow",
    "rejected": "yellow",
    "abandoned": "magenta",
}
"""Task states and their colours."""

_GAP = "  "
_NARROWEST_LAST = 12
"""Cells that a table's last column needs to be worth showing."""


def json_option(command: Command) -> Command:
    """`--json`, as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")(command)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, datetime):
        return timestamp(value)
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path | Decimal):
        return f"{value:f}" if isinstance(value, Decimal) else str(value)
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, tuple | set | frozenset):
        return list(value)
    raise TypeError(f"{type(value).__name__} is not JSON")


def to_json(value: Any, *, indent: int | None = None) -> str:
    """`value` as JSON in ASCII: nothing in it can move a terminal's cursor."""
    return json.dumps(value, default=_plain, indent=indent)


def print_json(value: Any) -> None:
    """`value` as JSON, indented."""
    click.echo(to_json(value, indent=2))


def timestamp(at: datetime) -> str:
    """ISO 8601 in UTC, to the millisecond."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def duration(time: timedelta) -> str:
    """A duration in the two units that matter: `12 ms`, `4.21 s`, `3 min 05 s`, `2 h 05 min`, `3 d 04 h`."""
    seconds = max(0.0, time.total_seconds())
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.995:
        return f"{seconds:.2f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600:02} h"


def tokens(number: int) -> str:
    """`812`, `12.3k`, `4.56M`."""
    if number < 10_000:
        return f"{number:,}"
    return f"{number / 1_000:.1f}k" if number < 1_000_000 else f"{number / 1_000_000:.2f}M"


def count(number: int, word: str, plural: str = "") -> str:
    """`1 task`, `2 tasks`."""
    return f"{number} {word if number == 1 else plural or word + 's'}"


def is_terminal() -> bool:
    """Whether stdout is a screen that can be drawn on."""
    return sys.stdout.isatty() and os.environ.get("TERM", "") != "dumb"


def console() -> Console:
    """Where to draw. Colours only on a terminal, and none where NO_COLOR is set."""
    return Console(file=sys.stdout, highlight=False, markup=False, emoji=False, soft_wrap=False)


def print_table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    styles: Sequence[str] = (),
    *,
    expendable: Sequence[str] = (),
) -> None:
    """A table: on a terminal fitted to its width, elsewhere aligned and whole, one line a row."""
    if not is_terminal():
        for text in table(headings, rows):
            click.echo(text.plain)
        return
    screen = console()
    for text in table(headings, rows, styles, expendable=expendable, width=screen.width):
        screen.print(text, no_wrap=True, crop=False, overflow="ignore")


def table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    styles: Sequence[str] = (),
    *,
    expendable: Sequence[str] = (),
    right: Sequence[str] = (),
    width: int | None = None,
) -> list[Text]:
    """The lines of a table, its headings first. Without a `width` in cells they are whole.

    `styles` has a colour for each row's first column, and the columns `right` are aligned there. Where the width is not
    enough the last column is cut, then the `expendable` ones are left out, in this order; the others stay whole.
    """
    lines = [list(headings), *([one_line(cell) for cell in row] for row in rows)]
    widths = [max(cell_len(line[i]) for line in lines) for i in range(len(headings))]
    shown = list(range(len(headings)))
    last = shown[-1]
    if width is not None:
        for heading in ["", *expendable]:
            shown = [i for i in shown if headings[i] != heading]
            room = width - sum(widths[i] + len(_GAP) for i in shown if i != last)
            if last not in shown or room >= min(widths[last], _NARROWEST_LAST):
                break
        if last in shown:
            widths[last] = min(widths[last], max(room, _NARROWEST_LAST))
    texts = []
    for number, line in enumerate(lines):
        text = Text(no_wrap=True)
        for i in shown:
            style = "bold" if number == 0 else styles[number - 1] if styles and i == 0 else ""
            cell = Text(line[i], style=style)
            if headings[i] in right:
                cell.pad_left(widths[i] - cell_len(line[i]))
            cell.truncate(widths[i], overflow="ellipsis", pad=True)
            text.append_text(cell).append(_GAP)
        text.rstrip()
        texts.append(text)
    return texts


def print_fields(fields: Sequence[tuple[str, str | None]]) -> None:
    """Names and values, one a line; what is None or empty is left out."""
    shown = [(name, value) for name, value in fields if value]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        told = _wrapped(value, width + len(_GAP))
        click.echo(f"{click.style(name.ljust(width), dim=True, reset=True) if colour() else name.ljust(width)}  {told}")


def print_prose(text: str) -> None:
    """A sentence or two: on a terminal its lines end between words."""
    click.echo(_wrapped(text, 0))


def _wrapped(text: str, indent: int) -> str:
    if not is_terminal():
        return text
    screen = console()
    lines = Text(text).wrap(screen, max(_NARROWEST_LAST, screen.width - indent))
    return f"\n{' ' * indent}".join(line.plain.rstrip() for line in lines)


def colour() -> bool:
    """Whether to colour what is printed without a console."""
    return is_terminal() and not os.environ.get("NO_COLOR")
