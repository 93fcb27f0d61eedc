"""Markdown as the vault has it: tables, and text from elsewhere as one line that shows as it is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

from tracekit.queue.payload import plain_text
from tracekit.tracing.secrets import redact_text
from tracekit.workers.words import one_line

MOST_ROWS = 500
"""Rows of one table; a task that rested for months has more attempts than anybody reads."""
CELL = 300
"""Characters of a table's cell."""


def table(head: Sequence[str], rows: Iterable[Sequence[str]], count: int) -> str:
    """`count` rows, of which the first `MOST_ROWS` are shown. Cells are text, not Markdown."""
    lines = [_row(head), _row(["---"] * len(head))]
    for number, row in enumerate(rows):
        if number == MOST_ROWS:
            return "\n".join(lines) + f"\n\n… and {count - MOST_ROWS} more."
        lines.append(_row([inline(cell, CELL) for cell in row]))
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


_MARKDOWN = re.compile(r"([\\`*_\[\]<>#|~$%=])")
_BARE_URL = re.compile(r"(?i)\b(https?|file|javascript|data):")


def inline(text: str, limit: int = CELL) -> str:
    """`text` as one line that shows as it is: a vault's reader may run code blocks and follow links and embeds."""
    line = plain_text(one_line(redact_text(text)), limit)
    return _BARE_URL.sub(r"\1\\:", _MARKDOWN.sub(r"\\\1", line))


def timestamp(time: datetime) -> str:
    """ISO 8601 in UTC, to the second."""
    return time.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def took(start: datetime | None, end: datetime | None) -> str:
    """How long that was, to read; empty where an end is not known."""
    return "" if start is None or end is None else lasted(end - start)


def lasted(time: timedelta) -> str:
    """A duration, to read: `12 ms`, `4.2 s`, `3 min 5 s`, `2 h 5 min`."""
    seconds = max(0.0, time.total_seconds())
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds >= 0.1 else f"{seconds * 1000:.0f} ms"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
