"""What the vault's notes are made of."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tracekit.workers.markdown import inline, lasted, took


@pytest.mark.parametrize(
    ("seconds", "read"),
    [(-1, "0 ms"), (0.0124, "12 ms"), (4.21, "4.2 s"), (185, "3 min 5 s"), (7_500, "2 h 5 min")],
)
def test_a_duration_is_read_alike_from_its_ends_and_by_itself(seconds: float, read: str) -> None:
    start, time = datetime(2026, 11, 24, tzinfo=UTC), timedelta(seconds=seconds)
    assert lasted(time) == took(start, start + time) == read
    assert took(start, None) == took(None, start) == ""


def test_a_note_holds_nothing_that_a_screen_obeys() -> None:
    assert inline("a\x1b[31mred\x07 \u202etxt.exe\nb") == "a\ufffd\\[31mred\ufffd \ufffdtxt.exe b"
