"""Carrying a trace over every border: HTTP headers, subprocesses, git trailers, log lines.

A task's context is text (a W3C `traceparent`) wherever it is kept. This module turns it into what each border takes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tracekit import ids

_TRACEPARENT = re.compile(
    r"(?P<version>[0-9a-f]{2})-(?P<trace>[0-9a-f]{32})-(?P<span>[0-9a-f]{16})-[0-9a-f]{2}(?P<more>-.*)?"
)


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A place in a trace: `trace_id` (32 hex digits), `span_id` (16), and the `tracestate` that goes with them."""

    trace_id: str
    span_id: str
    trace_state: str = ""

    @property
    def traceparent(self) -> str:
        """The W3C header. The sampled flag is always set: task spans are never sampled away."""
        return ids.traceparent(self.trace_id, self.span_id)

    def headers(self) -> dict[str, str]:
        """HTTP headers for a request to another service (W3C Trace Context)."""
        headers = {"traceparent": self.traceparent}
        if self.trace_state:
            headers["tracestate"] = self.trace_state
        return headers

    def environment(self) -> dict[str, str]:
        """Variables for a subprocess (OpenTelemetry, "Environment Variables as Context Propagation Carriers")."""
        return {name.upper(): value for name, value in self.headers().items()}

    def git_trailers(self, task_id: str) -> str:
        """Trailers for a commit's message or a PR's body (`git interpret-trailers`); there is no standard for these."""
        return f"Tracekit-Task: {task_id}\nTraceparent: {self.traceparent}\n"


def parse_traceparent(header: str | None, trace_state: str | None = None) -> TraceContext | None:
    """The caller's context, or None where the header is absent or not valid (W3C Trace Context, section 4.3: a
    header that cannot be parsed starts a new trace, it does not fail the request).
    """
    match = _TRACEPARENT.fullmatch((header or "").strip())
    if match is None or match["version"] == "ff" or (match["version"] == "00" and match["more"]):
        return None
    if match["trace"] == "0" * 32 or match["span"] == "0" * 16:
        return None
    state = (trace_state or "").strip()
    return TraceContext(match["trace"], match["span"], state if len(state) <= 512 and state.isprintable() else "")
