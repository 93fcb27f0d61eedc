"""The queue: tasks, hops, leases, waits, effects, the DLQ and the record, on PostgreSQL."""

from tracekit.queue.client import Queue
from tracekit.queue.model import (
    Done,
    GiveUp,
    HandOff,
    LeaseLost,
    Notice,
    Outcome,
    Park,
    PayloadRefused,
    Position,
    QueueError,
    Receipt,
    Resumption,
    RetryLater,
    Settlement,
    Signal,
    TaskNotFound,
)
from tracekit.queue.submission import Received, Submission

__all__ = [
    "Done",
    "GiveUp",
    "HandOff",
    "LeaseLost",
    "Notice",
    "Outcome",
    "Park",
    "PayloadRefused",
    "Position",
    "Queue",
    "QueueError",
    "Receipt",
    "Received",
    "Resumption",
    "RetryLater",
    "Settlement",
    "Signal",
    "Submission",
    "TaskNotFound",
]
