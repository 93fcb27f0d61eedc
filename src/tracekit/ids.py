"""Identity: of tasks, of traces, and of every span in a task's skeleton.

The id of a skeleton span follows from what it is the span of: the root from the task, an attempt from (task, hop,
attempt). So the id is fixed before the span is written, a sweeper can close the span of a worker that died, and two
processes that describe the same attempt can only describe it under the same id.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from datetime import datetime

from ulid import ULID

_TASK_ID = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}")


def new_task_id() -> str:
    """A new task id: a ULID of 26 characters, which sorts by its time of creation."""
    return str(ULID())


def is_task_id(text: str) -> bool:
    """Whether `text` has the form of a task id: 26 characters of Crockford's base 32, no more than 128 bits."""
    return _TASK_ID.fullmatch(text) is not None


def new_trace_id() -> str:
    """A new W3C trace id, in lower-case hex: a ULID, of which the last 80 bits are random.

    W3C Trace Context (section "random-trace-id flag") asks for 56 random bits on the right, and leaves the left to
    whoever wants a time there.
    """
    return ULID().hex


def task_id_of(trace_id: str) -> str:
    """The id of the task that begins the trace `trace_id`: the same 128 bits. So whoever has one has the other, and no
    index is needed to find a task by its trace.
    """
    return str(ULID.from_hex(trace_id))


def new_span_id() -> str:
    """A new W3C span id, for a span that follows from nothing: 8 random bytes in lower-case hex, not all zero."""
    while (span_id := secrets.token_hex(8)) == "0" * 16:
        pass
    return span_id


def first_task_id(moment: datetime) -> str:
    """The least id of a task made at `moment` or later, by its maker's clock."""
    return str(ULID.from_bytes(int(moment.timestamp() * 1000).to_bytes(6, "big") + bytes(10)))


def traceparent(trace_id: str, span_id: str) -> str:
    """The W3C `traceparent` of a span that is sampled: task spans always are."""
    return f"00-{trace_id}-{span_id}-01"


def _span_id(task_id: str, what: str) -> str:
    digest = hashlib.sha256(f"{task_id}/{what}".encode()).hexdigest()
    return digest[:16]


def root_span_id(task_id: str) -> str:
    """The span of the whole task."""
    return _span_id(task_id, "root")


def receive_span_id(task_id: str) -> str:
    """The span of the request that brought the task in."""
    return _span_id(task_id, "receive")


def send_span_id(task_id: str, hop: int) -> str:
    """The span of a hop's creation, the parent of all its attempts."""
    return _span_id(task_id, f"send/{hop}")


def queue_span_id(task_id: str, hop: int, attempt: int) -> str:
    """The span of the time that `attempt` waited for a worker."""
    return _span_id(task_id, f"queue/{hop}/{attempt}")


def attempt_span_id(task_id: str, hop: int, attempt: int) -> str:
    """The span of one claim of a hop by one worker."""
    return _span_id(task_id, f"attempt/{hop}/{attempt}")


def wait_span_id(task_id: str, hop: int, attempt: int) -> str:
    """The span of the wait that `attempt` parked its hop on."""
    return _span_id(task_id, f"wait/{hop}/{attempt}")


def review_span_id(task_id: str, hop: int) -> str:
    """The span of the time that a dead hop lay in the DLQ."""
    return _span_id(task_id, f"dlq/{hop}")
