"""NOTIFY: waking sleepers, and nobody else (Q9).

NOTIFY inside a transaction takes a database-wide lock until its commit is on disk (PostgreSQL, `PreCommit_Notify`), so
a busy queue that notifies in every transaction commits one at a time. Here whoever sleeps says so in a row of
`tracekit.sleepers`, and a writer notifies only if somebody does: a busy queue has no sleepers, and an idle one has
nobody to hold up.

A sleeper says so first, in a commit of its own, and then looks once more. A writer that did not see the row had begun
before that commit; should it also commit after that look, the sleeper finds its work at the next poll.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any, LiteralString

from psycopg import AsyncConnection

from tracekit import ids
from tracekit.queue.model import Wakeup

CHANNEL = "tracekit"
MAX_PAYLOAD = 7_999
"""Bytes of one NOTIFY (PostgreSQL refuses 8,000)."""

MOST_TOLD = 10
"""Wake-ups of one commit that are told one by one, beside one of each mode."""

FORGOTTEN_AFTER = timedelta(minutes=5)
"""A sleeper that has not been seen for as long is gone."""


def wakeup(task_id: str, trace_id: str, rank: int, hop: int, mode: str | None) -> Wakeup:
    """What to say of a task: a hop is ready for `mode`, in the context of the hop's creation, or (None) it has left the
    queue.
    """
    span_id = ids.root_span_id(task_id) if mode is None else ids.send_span_id(task_id, hop)
    return Wakeup(task_id, trace_id, ids.traceparent(trace_id, span_id), mode, rank)


def telling_of(modes: LiteralString, tasks: LiteralString) -> LiteralString:
    """`TELL`, where the parameters that say whom it is for are called so."""
    return f"""
SELECT pg_notify('tracekit', %(wakeups)s)
WHERE EXISTS (SELECT FROM tracekit.sleepers AS s
              WHERE s.modes && %({modes})s::text[] OR s.task_id = ANY(%({tasks})s::text[]))
"""


TELL: LiteralString = telling_of("woken_modes", "woken_tasks")
"""As a subquery of a statement that writes, or by itself. Its parameters are `telling`'s."""


def telling(modes: Sequence[str | None], wakeup: Callable[[int], Wakeup], tasks: str) -> dict[str, str]:
    """The parameters of `TELL`: one payload (see `wakeups`), whom it is for, and what it is about. `tasks` are the ids
    of all tasks, as the text of an array.
    """
    return {
        "wakeups": wakeups(modes, wakeup),
        "woken_modes": array([name for name in dict.fromkeys(modes) if name is not None]),
        "woken_tasks": tasks,
    }


def wakeups(modes: Sequence[str | None], wakeup: Callable[[int], Wakeup]) -> str:
    """The payload for a wake-up of each of `modes`, the n-th of which `wakeup` makes. Mostly nobody hears them: so only
    a few are made, one of each mode among them, since whoever serves it looks for the rest by itself.
    """
    if len(modes) <= MOST_TOLD:
        return payload([wakeup(number) for number in range(len(modes))])
    first: dict[str | None, int] = {}
    for number, mode in enumerate(modes):
        first.setdefault(mode, number)
    chosen = sorted({*first.values(), *range(MOST_TOLD)})
    return payload([wakeup(number) for number in chosen])


def array(values: Iterable[str]) -> str:
    """Strings as the text of a PostgreSQL array: psycopg's lists cost several times as much."""
    values = list(values)
    if not values:
        return "{}"
    text = '","'.join(values)
    if "\\" in text or text.count('"') > 2 * (len(values) - 1):
        text = '","'.join([value.replace("\\", "\\\\").replace('"', '\\"') for value in values])
    return f'{{"{text}"}}'


def payload(wakeups: Sequence[Wakeup]) -> str:
    """Wake-ups as a JSON array of at most `MAX_PAYLOAD` bytes, one of each mode first."""
    first: dict[str | None, Wakeup] = {}
    for wakeup in wakeups:
        first.setdefault(wakeup.mode, wakeup)
    chosen = [*first.values(), *(wakeup for wakeup in wakeups if first[wakeup.mode] is not wakeup)]
    items: list[str] = []
    size = 2
    for wakeup in chosen:
        item = _item(wakeup)
        size += len(item) + 1
        if size > MAX_PAYLOAD:
            break
        items.append(item)
    return f"[{','.join(items)}]"


def _item(wakeup: Wakeup) -> str:
    # Put together by hand, for there is one with each task: only a mode may hold what JSON must escape.
    return (
        f'{{"task":"{wakeup.task_id}","trace_id":"{wakeup.trace_id}","traceparent":"{wakeup.traceparent}",'
        f'"mode":{json.dumps(wakeup.mode)},"priority":{wakeup.rank}}}'
    )


async def tell(connection: AsyncConnection[Any], wakeups: Sequence[Wakeup]) -> None:
    """Wake sleepers with the commit of the transaction that `connection` is in."""
    if wakeups:
        tasks = "{" + ",".join(wakeup.task_id for wakeup in wakeups) + "}"
        parameters = telling([wakeup.mode for wakeup in wakeups], wakeups.__getitem__, tasks)
        await connection.execute(TELL, parameters)


SLEEP: LiteralString = """
INSERT INTO tracekit.sleepers AS s (id, modes, task_id) VALUES (%(id)s, %(modes)s, %(task)s)
ON CONFLICT (id) DO UPDATE SET modes = excluded.modes, task_id = excluded.task_id, seen_at = clock_timestamp()
"""

AWAKE: LiteralString = "DELETE FROM tracekit.sleepers WHERE id = %(id)s"

FORGET: LiteralString = "DELETE FROM tracekit.sleepers WHERE seen_at < statement_timestamp() - %s"
