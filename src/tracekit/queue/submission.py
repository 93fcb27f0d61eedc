"""A task on its way into the queue, and the one statement that accepts it.

Everything a new task needs (its envelope, which is the first line of its record, and its place in the queue) is written
by one statement that hangs on the insert of the envelope: a known idempotency key inserts nothing at all.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, LiteralString

from tracekit.envelope import Envelope, RetryPolicy
from tracekit.queue.model import Json, Wakeup
from tracekit.queue.notify import array, telling_of, wakeup, wakeups
from tracekit.queue.payload import storable_text
from tracekit.tracing.spans import AttributeValue


@dataclass(frozen=True, slots=True)
class Received:
    """The request that brought a task in, for its span. `duration` in seconds, up to the enqueue."""

    name: str
    duration: float
    attributes: dict[str, AttributeValue]


@dataclass(frozen=True, slots=True)
class Submission:
    """An envelope, the mode it enters by, and what that mode is given."""

    envelope: Envelope
    mode: str = "router"
    input: Json = None
    received: Received | None = None
    tags: tuple[str, ...] = ()
    review_of: str | None = None
    link: tuple[str, str] | None = None
    """(trace_id, span_id) of what this task is about, such as a dead task's last attempt."""

    def text(self) -> str:
        """The input as JSON. Raises `PayloadRefused`."""
        return storable_text(self.input, f"the input of {self.mode}")

    def wakeup(self) -> Wakeup:
        """What to tell sleeping workers once it is committed."""
        envelope = self.envelope
        return wakeup(envelope.id, envelope.trace_id, envelope.priority.rank, 1, self.mode)

    def kind(self) -> tuple[Hashable, ...]:
        """What tasks that are offered together mostly have in common. The policy is told by its identity: its values
        take as long as all the rest.
        """
        envelope = self.envelope
        return (
            envelope.origin,
            envelope.surface,
            envelope.requester,
            envelope.priority,
            envelope.destructive,
            envelope.ttl,
            id(envelope.retry_policy),
            envelope.data_tier,
            self.mode,
        )

    def extra(self) -> str | None:
        """What few tasks have, as JSON."""
        envelope, received, link = self.envelope, self.received, self.link
        if not (received or envelope.parent_span_id or self.tags or self.review_of or link):
            return None
        extra: dict[str, Any] = {
            "parent_span_id": envelope.parent_span_id,
            "trace_state": envelope.trace_state,
            "tags": array(self.tags) if self.tags else None,
            "review_of": self.review_of,
            "link": {"trace_id": link[0], "span_id": link[1]} if link else None,
            "received": {"name": received.name, "duration": received.duration, "attributes": received.attributes}
            if received
            else None,
        }
        return json.dumps({name: value for name, value in extra.items() if value})


@lru_cache(maxsize=256)
def _policy(policy: RetryPolicy) -> str:
    return policy.model_dump_json()


def offer(submissions: Sequence[Submission], texts: Sequence[str] | None = None) -> dict[str, Any]:
    """The parameters of `ACCEPT`; `texts` are the submissions' own, where somebody has them. Raises `PayloadRefused`.

    They are ordered by key, as those of anybody else who offers the same ones: no two can wait for each other.
    """
    texts = [submission.text() for submission in submissions] if texts is None else texts
    offered = sorted(zip(submissions, texts, strict=True), key=_key)
    ordered = [submission for submission, _ in offered]
    envelopes = [submission.envelope for submission in ordered]
    numbers: dict[tuple[Hashable, ...], str] = {}
    first: list[Submission] = []
    kinds: list[str] = []
    for submission in ordered:
        kind = submission.kind()
        number = numbers.get(kind)
        if number is None:
            first.append(submission)
            number = numbers[kind] = str(len(first))
        kinds.append(number)
    common = [submission.envelope for submission in first]
    extras = [submission.extra() for submission in ordered]
    return {
        "origins": array([e.origin for e in common]),
        "surfaces": array([e.surface for e in common]),
        "requesters": array([e.requester for e in common]),
        "priorities": _plain([str(e.priority.rank) for e in common]),
        "destructives": _plain([str(e.destructive) for e in common]),
        "ttls": _plain([str(e.ttl.total_seconds()) if e.ttl else "NULL" for e in common]),
        "policies": array([_policy(e.retry_policy) for e in common]),
        "tiers": array([e.data_tier for e in common]),
        "modes": array([s.mode for s in first]),
        "kinds": _plain(kinds),
        "ids": _plain([e.id for e in envelopes]),
        "traces": _plain([e.trace_id for e in envelopes]),
        "keys": array([e.idempotency_key for e in envelopes]),
        "intents": array([e.intent for e in envelopes]),
        "extras": _plain([array([e])[1:-1] if e else "NULL" for e in extras]) if any(extras) else "{}",
        "inputs": f"[{','.join([text for _, text in offered])}]",
        "wakeups": wakeups([s.mode for s in ordered], lambda n: ordered[n].wakeup()),
    }


def _key(offered: tuple[Submission, str]) -> tuple[str, str]:
    envelope = offered[0].envelope
    return envelope.idempotency_key, envelope.origin


def _plain(values: Iterable[str]) -> str:
    """As `array`, of what needs no quotes."""
    return "{" + ",".join(values) + "}"


# Sets in the select list are read side by side, a shorter one with NULL at its end, and rows come in their order; in
# FROM they would be kept whole first. What tasks have in common is looked up by its number, which takes no join.
_INSERT: LiteralString = """
WITH accepted AS (
    INSERT INTO tracekit.envelopes (id, trace_id, parent_span_id, trace_state, origin, surface, requester, intent,
                                    priority, destructive, idempotency_key, expires_at, retry_policy, data_tier, tags,
                                    review_of, link, received, mode, input, created_at)
    SELECT id, trace_id, extra->>'parent_span_id', coalesce(extra->>'trace_state', ''),
           (%(origins)s::text[])[kind], (%(surfaces)s::text[])[kind], (%(requesters)s::text[])[kind], intent,
           (%(priorities)s::smallint[])[kind], (%(destructives)s::boolean[])[kind], idempotency_key,
           statement_timestamp() + make_interval(secs => (%(ttls)s::double precision[])[kind]),
           (%(policies)s::json[])[kind], (%(tiers)s::text[])[kind], coalesce((extra->>'tags')::text[], '{}'),
           extra->>'review_of', extra->'link', extra->'received', (%(modes)s::text[])[kind], input,
           statement_timestamp()
    FROM (
        SELECT unnest(%(kinds)s::int[]) AS kind, unnest(%(ids)s::text[]) AS id, unnest(%(traces)s::text[]) AS trace_id,
               unnest(%(keys)s::text[]) AS idempotency_key, unnest(%(intents)s::text[]) AS intent,
               unnest(%(extras)s::jsonb[]) AS extra, json_array_elements(%(inputs)s::json) AS input
    ) AS offered
"""

_PLACE: LiteralString = f"""
    RETURNING id, mode, priority, created_at, expires_at, (retry_policy->>'max_attempts')::int AS max_attempts
), place AS (
    INSERT INTO tracekit.queue (task_id, hop, mode, priority, state, created_at, ready_at, expires_at, max_attempts)
    SELECT id, 1, mode, priority, 'ready', created_at, created_at, expires_at, max_attempts FROM accepted
)
SELECT statement_timestamp(),
       CASE WHEN count(*) < cardinality(%(ids)s::text[]) THEN ARRAY(SELECT id FROM accepted) END,
       CASE WHEN count(*) > 0 THEN ({telling_of("modes", "ids")}) END
FROM accepted
"""

ACCEPT: LiteralString = f"{_INSERT} ON CONFLICT (idempotency_key, origin) DO NOTHING {_PLACE}"
"""One row: when they were accepted, and the ids of those that were, or NULL for all. A known key inserts nothing."""

ACCEPT_NEW: LiteralString = f"{_INSERT} {_PLACE}"
"""The same, and a known key is an error: for many that are most likely new."""
