"""Making tasks and moving them by hand."""

from __future__ import annotations

import itertools
from datetime import timedelta
from typing import Any

from tracekit import ids
from tracekit.envelope import Envelope, Origin, Priority, RetryPolicy, TaskRequest
from tracekit.queue import Position, Queue, Settlement, Submission
from tracekit.queue.model import Ending

LEASE = timedelta(seconds=60)
AT_ONCE = RetryPolicy(
    max_attempts=3, initial_delay=timedelta(microseconds=1), multiplier=1, max_delay=timedelta(microseconds=1)
)
"""Three attempts that follow each other without a rest."""

_numbers = itertools.count()


def submission(mode: str = "router", input: Any = None, **fields: Any) -> Submission:
    """A task that asks for nothing in particular, under a key of its own."""
    origin = fields.pop("origin", Origin.MANUAL)
    requester, surface = fields.pop("requester", "rob"), fields.pop("surface", "test")
    trace = {name: fields.pop(name) for name in ("parent_span_id", "trace_state") if name in fields}
    trace_id = fields.pop("trace_id", None) or ids.new_trace_id()
    extra = {name: fields.pop(name) for name in ("received", "review_of", "tags") if name in fields}
    request = TaskRequest(
        intent=fields.pop("intent", "turn on the kitchen light"),
        idempotency_key=fields.pop("key", f"test-{next(_numbers)}"),
        priority=fields.pop("priority", Priority.NORMAL),
        retry_policy=fields.pop("retry_policy", AT_ONCE),
        **fields,
    )
    envelope = Envelope.seal(request, origin=origin, surface=surface, requester=requester, trace_id=trace_id, **trace)
    return Submission(envelope, mode=mode, input=input, **extra)


async def accept(queue: Queue, mode: str = "router", **fields: Any) -> str:
    """One task in the queue; its id."""
    return (await queue.enqueue([submission(mode, **fields)]))[0].task_id


async def claim(queue: Queue, mode: str = "router", worker: str = "w1", lease: timedelta = LEASE) -> Position | None:
    """The next hop of a mode, or None."""
    claimed = await queue.claim(worker, {mode: 1}, lease)
    return claimed[0] if claimed else None


async def take(queue: Queue, mode: str = "router", worker: str = "w1", lease: timedelta = LEASE) -> Position:
    """The next hop of a mode, which must be there."""
    position = await claim(queue, mode, worker, lease)
    assert position is not None, f"nothing is ready in {mode}"
    return position


async def settle(queue: Queue, position: Position, ending: Ending) -> bool:
    """Whether the lease was still held."""
    return not await queue.settle([Settlement(position, ending)])
