"""Finishing: the two ends that nearly every attempt comes to, the end of its task and the hand-off to the next hop.

Each is one statement for a whole batch, and does everything that the step is: the queue's row, the line of the record
(which holds the attempt, the next hop and the end of the task), raised flags, notifications. Only rows whose lease is
still held are touched (Q3). All other ends go through `settle`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, LiteralString

from tracekit.queue.model import Done, HandOff, Position, Settlement, Wakeup
from tracekit.queue.notify import TELL, array, telling, wakeup
from tracekit.queue.payload import plain_text, storable_text
from tracekit.queue.transitions import summary_notice

_HELD: LiteralString = f"SELECT token, ({TELL}) FROM held"

_ENDING: LiteralString = f"""
WITH ending AS MATERIALIZED (
    SELECT * FROM unnest(%(tasks)s::text[], %(personas)s::text[], %(outcomes)s::text[], %(summaries)s::text[])
        AS e(task_id, persona, outcome, summary)
), held AS (
    -- What has a worker is running; and for this no index but the first is of use.
    DELETE FROM tracekit.queue
    WHERE task_id = ANY(%(tasks)s::text[]) AND token = ANY(%(tokens)s::bigint[]) AND worker IS NOT NULL
    RETURNING task_id, hop, mode, attempt, token, worker, ready_at, claimed_at
), line AS (
    INSERT INTO tracekit.record (task_id, at, kind, hop, mode, attempt, persona, worker, outcome, ready_at, claimed_at,
                                 end_state, summary)
    SELECT h.task_id, clock.now, 'attempt.ended', h.hop, h.mode, h.attempt, nullif(e.persona, ''), h.worker, e.outcome,
           h.ready_at, h.claimed_at, e.outcome, nullif(e.summary, '')
    FROM clock_timestamp() AS clock(now), held AS h JOIN ending AS e USING (task_id)
), told AS (
    INSERT INTO tracekit.outbox (task_id, recipient, kind, urgent, title, body, data, created_at, due_at)
    SELECT n.task_id, n.recipient, n.kind, n.urgent, n.title, n.body, n.data, clock_timestamp(), clock_timestamp()
    FROM jsonb_to_recordset(%(notices)s::jsonb) AS n(task_id text, recipient text, kind text, urgent boolean,
                                                     title text, body text, data jsonb)
    JOIN held AS h USING (task_id)
)
{_HELD}
"""

# The attempt's own times are those of the row as it was, which is locked before it is changed. It is changed by a
# conflict on its key, which is a lookup a row whatever the planner expects; an UPDATE from a list may become a join.
_MOVE_ON: LiteralString = """
WITH ending AS MATERIALIZED (
    SELECT * FROM unnest(%(tasks)s::text[], %(personas)s::text[], %(modes)s::text[], %(next_personas)s::text[],
                         %(inputs)s::json[], %(most)s::int[], %(beyond)s::bool[])
        AS e(task_id, persona, mode, next_persona, input, max_attempts, beyond_ttl)
), held AS MATERIALIZED (
    SELECT task_id, hop, mode, priority, expires_at, attempt, token, worker, ready_at, claimed_at,
           clock_timestamp() AS now
    FROM tracekit.queue
    WHERE task_id = ANY(%(tasks)s::text[]) AND token = ANY(%(tokens)s::bigint[]) AND worker IS NOT NULL
    FOR UPDATE
), place AS (
    INSERT INTO tracekit.queue (task_id, hop, mode, priority, state, created_at, ready_at, expires_at, max_attempts)
    SELECT task_id, h.hop + 1, e.mode, h.priority, 'ready', h.now, h.now,
           CASE WHEN NOT e.beyond_ttl THEN h.expires_at END, e.max_attempts
    FROM held AS h JOIN ending AS e USING (task_id)
    ON CONFLICT (task_id) DO UPDATE
    SET hop = excluded.hop, mode = excluded.mode, state = excluded.state, created_at = excluded.created_at,
        ready_at = excluded.ready_at, due_at = NULL, expires_at = excluded.expires_at, attempt = 0,
        max_attempts = excluded.max_attempts, worker = NULL, claimed_at = NULL, wait_attempt = NULL
), line AS (
    INSERT INTO tracekit.record (task_id, at, kind, hop, mode, attempt, persona, worker, outcome, ready_at, claimed_at,
                                 next_hop, next_mode, next_persona, next_input)
    SELECT h.task_id, h.now, 'attempt.ended', h.hop, h.mode, h.attempt, nullif(e.persona, ''), h.worker,
           'handed_off', h.ready_at, h.claimed_at, h.hop + 1, e.mode, nullif(e.next_persona, ''), e.input
    FROM held AS h JOIN ending AS e USING (task_id)
)"""

_HAND_OFF: LiteralString = f"{_MOVE_ON} {_HELD}"

# Raising flags of their tasks, which is rare.
_HAND_OFF_AND_RAISE: LiteralString = f"""
{_MOVE_ON}, raised AS (
    UPDATE tracekit.envelopes AS t
    SET destructive = t.destructive OR r.destructive,
        tags = ARRAY(SELECT DISTINCT tag FROM unnest(t.tags || r.tags) AS tag ORDER BY tag)
    FROM jsonb_to_recordset(%(raised)s::jsonb) AS r(task_id text, destructive boolean, tags text[])
    JOIN held AS h USING (task_id) WHERE t.id = h.task_id
)
{_HELD}
"""

Statement = tuple[LiteralString, dict[str, Any], bool]
"""With its parameters, and whether it may be prepared: its plan fits tables of any size."""


def is_finish(settlement: Settlement) -> bool:
    """Whether `finish` takes it."""
    return isinstance(settlement.ending, Done | HandOff)


def finish(settlements: Sequence[Settlement]) -> list[Statement]:
    """The statements for a batch, at most three."""
    done, on, raising = [], [], []
    for settlement in settlements:
        match settlement.ending:
            case Done():
                done.append(settlement)
            case HandOff(destructive=False, tags=()):
                on.append(settlement)
            case _:
                raising.append(settlement)
    statements: list[Statement] = []
    if done:
        statements.append((_ENDING, _ends(done), True))
    if on:
        statements.append((_HAND_OFF, _hand_offs(on), True))
    if raising:
        statements.append((_HAND_OFF_AND_RAISE, _hand_offs(raising), False))
    return statements


def handed_on(at: Position, ending: HandOff) -> str:
    """What the next hop is given, as JSON. Raises `PayloadRefused`."""
    return storable_text(ending.input, f"what {at.mode} hands to {ending.mode}")


def _leases(settlements: Sequence[Settlement]) -> dict[str, str]:
    return {
        "tasks": "{" + ",".join([s.position.task_id for s in settlements]) + "}",
        "tokens": "{" + ",".join([str(s.position.token) for s in settlements]) + "}",
        "personas": array([s.position.persona or "" for s in settlements]),
    }


def _ends(settlements: Sequence[Settlement]) -> dict[str, Any]:
    leases = _leases(settlements)
    outcomes, summaries, notices = [], [], []
    for settlement in settlements:
        at, ending = settlement.position, settlement.ending
        assert isinstance(ending, Done)
        outcomes.append(ending.outcome)
        summaries.append(plain_text(ending.summary))
        if ending.notify:
            notices.append(summary_notice(at, ending.outcome, ending.summary).row(at.task_id))
    return {
        **leases,
        "outcomes": array(outcomes),
        "summaries": array(summaries),
        "notices": json.dumps(notices),
        **telling([None] * len(settlements), lambda n: _wakeup(settlements[n]), leases["tasks"]),
    }


def _hand_offs(settlements: Sequence[Settlement]) -> dict[str, Any]:
    leases = _leases(settlements)
    modes, personas, inputs, most, beyond, raised = [], [], [], [], [], []
    for settlement in settlements:
        at, ending = settlement.position, settlement.ending
        assert isinstance(ending, HandOff)
        modes.append(ending.mode)
        personas.append(ending.persona or at.persona or "")
        inputs.append(handed_on(at, ending) if settlement.text is None else settlement.text)
        most.append(str(at.retry_policy.max_attempts))
        beyond.append("t" if ending.beyond_ttl else "f")
        if ending.destructive or ending.tags:
            raised.append({"task_id": at.task_id, "destructive": ending.destructive, "tags": ending.tags})
    return {
        **leases,
        "modes": array(modes),
        "next_personas": array(personas),
        "inputs": array(inputs),
        "most": "{" + ",".join(most) + "}",
        "beyond": "{" + ",".join(beyond) + "}",
        "raised": json.dumps(raised),
        **telling(modes, lambda n: _wakeup(settlements[n]), leases["tasks"]),
    }


def _wakeup(settlement: Settlement) -> Wakeup:
    at, ending = settlement.position, settlement.ending
    return wakeup(at.task_id, at.trace_id, at.rank, at.hop + 1, ending.mode if isinstance(ending, HandOff) else None)
