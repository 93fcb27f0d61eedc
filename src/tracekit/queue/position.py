"""Reading positions: one list of columns, whoever asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, LiteralString

from tracekit.envelope import DataTier, RetryPolicy
from tracekit.queue.model import Position, Resumption, Signal

COLUMNS: LiteralString = """
    q.task_id, t.trace_id, t.trace_state, t.origin, t.surface, t.requester, t.intent, t.priority,
    t.destructive, t.data_tier, t.retry_policy::text, t.tags, t.review_of, t.created_at,
    q.hop, q.mode, h.next_persona, q.created_at, q.ready_at, q.due_at, q.state, q.expires_at, q.attempt,
    q.max_attempts, q.token, q.worker, q.claimed_at, q.wait_attempt,
    CASE WHEN q.hop = 1 THEN t.input ELSE h.next_input END,
    w.kind, w.key, w.data, w.opened_at, s.payload, s.sent_by, s.received_at
"""
"""Of a queue row `q` with `JOINS`, in the order of `Position`'s fields."""

# LIMIT makes each a lookup a row, whatever the planner expects of the tables: it cannot be turned into a join.
JOINS: LiteralString = """
    CROSS JOIN LATERAL (SELECT * FROM tracekit.envelopes WHERE id = q.task_id LIMIT 1) AS t
    LEFT JOIN LATERAL (
        SELECT * FROM tracekit.record WHERE q.hop > 1 AND task_id = q.task_id AND next_hop = q.hop LIMIT 1
    ) AS h ON true
    LEFT JOIN LATERAL (
        SELECT * FROM tracekit.waits WHERE task_id = q.task_id AND hop = q.hop AND attempt = q.wait_attempt LIMIT 1
    ) AS w ON true
    LEFT JOIN LATERAL (SELECT * FROM tracekit.signals WHERE id = w.signal_id LIMIT 1) AS s ON true
"""

WIDTH = 36
"""How many `COLUMNS` there are."""

_TIER, _POLICY, _TAGS, _INPUT = 9, 10, 11, 28
_tiers = {tier.value: tier for tier in DataTier}


@lru_cache(maxsize=256)
def _policy(text: str) -> RetryPolicy:
    """Few policies are in use, and checking one costs more than all else that is done to a row."""
    return RetryPolicy.model_validate_json(text)


def position(row: Sequence[Any]) -> Position:
    """`COLUMNS` as a `Position`."""
    kind, key, data, opened_at, payload, sent_by, received_at = row[_INPUT + 1 : WIDTH]
    resumption = None
    if kind is not None:
        signal = Signal(key, payload, sent_by, received_at) if sent_by is not None else None
        resumption = Resumption(kind, key, data, opened_at, signal)
    # As one tuple: 29 arguments are gone through by name otherwise.
    of_task = _tiers[row[_TIER]], _policy(row[_POLICY]), tuple(row[_TAGS])
    return Position._make((*row[:_TIER], *of_task, *row[_TAGS + 1 : _INPUT + 1], resumption))
