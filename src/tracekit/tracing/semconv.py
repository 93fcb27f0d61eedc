"""Names of attributes, as OpenTelemetry's conventions have them, and our own under `tracekit.`.

Sources: semantic conventions 1.38 (messaging, HTTP, errors), the CI/CD and VCS conventions (release candidate), and the
GenAI conventions, which live in a repository of their own and in no Python package yet.
"""

from typing import Final

TASK_ID: Final = "tracekit.task.id"
HOP: Final = "tracekit.hop"
MODE: Final = "tracekit.mode"
PERSONA: Final = "tracekit.persona"
ATTEMPT: Final = "tracekit.attempt"
OUTCOME: Final = "tracekit.outcome"
ORIGIN: Final = "tracekit.origin"
SURFACE: Final = "tracekit.surface"
REQUESTER: Final = "tracekit.requester"
PRIORITY: Final = "tracekit.priority"
DATA_TIER: Final = "tracekit.data_tier"
WAIT_KIND: Final = "tracekit.wait.kind"
WAIT_RESOLUTION: Final = "tracekit.wait.resolution"
LINK: Final = "tracekit.link"
"""Why a link is there: `creation`, `retry_of`, `handed_off_by`, `parked_by`, `review_of`."""

COST_USD: Final = "tracekit.cost.usd"
COST_UNPRICED: Final = "tracekit.cost.unpriced_calls"
USAGE_CALLS: Final = "tracekit.usage.calls"
USAGE_REQUESTS: Final = "tracekit.usage.requests"
USAGE_INPUT: Final = "tracekit.usage.input_tokens"
USAGE_CACHE_READ: Final = "tracekit.usage.cache_read_tokens"
USAGE_CACHE_WRITE: Final = "tracekit.usage.cache_write_tokens"
USAGE_OUTPUT: Final = "tracekit.usage.output_tokens"
USAGE_REASONING: Final = "tracekit.usage.reasoning_tokens"
"""What a task had spent by its end, on its root span: four disjoint counters, and reasoning inside the output."""

ERROR_TYPE: Final = "error.type"
LEASE_EXPIRED: Final = "lease_expired"
"""`error.type` of an attempt whose worker died or lost its lease."""

MESSAGING_SYSTEM: Final = "messaging.system"
MESSAGING_DESTINATION: Final = "messaging.destination.name"
MESSAGING_OPERATION: Final = "messaging.operation.name"
MESSAGING_OPERATION_TYPE: Final = "messaging.operation.type"
MESSAGING_MESSAGE_ID: Final = "messaging.message.id"
MESSAGING_CLIENT_ID: Final = "messaging.client.id"
SYSTEM: Final = "tracekit"
"""`messaging.system` of the queue."""
