"""Reading positions: one list of columns, whoever asks for it."""

from __future__ import annotations

from typing import Any, LiteralString

from tracekit.envelope import DataTier, RetryPolicy
from tracekit.queue.model import Position, Resumption, Signal

COLUMNS: LiteralString = """
    q.task_id, t.trace_id, t.parent_span_id, t.trace_state, t.origin, t.surface, t.requester, t.intent,
    t.priority AS rank, t.destructive, t.data_tier, t.retry_policy, t.tags, t.review_of,
    t.created_at AS task_created_at, t.expires_at AS task_expires_at,
    q.hop, q.mode, h.persona, q.created_at AS hop_created_at, q.ready_at, q.due_at, q.state, q.expires_at, q.attempt,
    q.max_attempts, q.token, q.worker, q.claimed_at, q.wait_attempt, h.input,
    w.kind AS wait_kind, w.key AS wait_key, w.data AS wait_data, w.opened_at AS wait_opened_at,
    s.payload AS signal_payload, s.sent_by AS signal_sent_by, s.received_at AS signal_received_at
"""
"""Of a queue row `q` with `JOINS`."""

JOINS: LiteralString = """
    JOIN tracekit.tasks AS t ON t.id = q.task_id
    JOIN tracekit.hops AS h ON (h.task_id, h.hop) = (q.task_id, q.hop)
    LEFT JOIN tracekit.waits AS w ON (w.task_id, w.hop, w.attempt) = (q.task_id, q.hop, q.wait_attempt)
    LEFT JOIN tracekit.signals AS s ON s.id = w.signal_id
"""


def position(row: dict[str, Any]) -> Position:
    """A row of `COLUMNS` as a `Position`."""
    signal_payload, sent_by, received_at = (
        row.pop(name) for name in ("signal_payload", "signal_sent_by", "signal_received_at")
    )
    kind, key, data, opened_at = (row.pop(name) for name in ("wait_kind", "wait_key", "wait_data", "wait_opened_at"))
    signal = Signal(key, signal_payload, sent_by, received_at) if sent_by is not None else None
    return Position(
        **{
            **row,
            "data_tier": DataTier(row["data_tier"]),
            "retry_policy": RetryPolicy.model_validate(row["retry_policy"]),
            "tags": tuple(row["tags"]),
        },
        resumption=Resumption(kind, key, data, opened_at, signal) if kind is not None else None,
    )
