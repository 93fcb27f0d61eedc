"""Hops to run code in."""

from __future__ import annotations

from typing import Any

from tracekit import ids
from tracekit.tracing.hop import HopScope


def hop(**fields: Any) -> HopScope:
    """An attempt of a task of its own."""
    values: dict[str, Any] = {
        "task_id": ids.new_task_id(),
        "trace_id": ids.new_trace_id(),
        "hop": 2,
        "attempt": 1,
        "mode": "executor",
        "persona": "jeeves",
    }
    return HopScope(**{**values, **fields})
