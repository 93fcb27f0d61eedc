"""How the processes run: workers, ingress, what is remembered, and what a person must approve."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Self

from pydantic import Field, SecretStr, model_validator

from tracekit.config.section import Section, Span


class WorkerSettings(Section):
    """How a worker process runs hops."""

    concurrency: Annotated[int, Field(ge=1, le=1000)] = 8
    """Hops of one mode in flight in one process. More hides the latency of what handlers wait for, and costs memory."""
    lease: Span = timedelta(seconds=60)
    """How long a claim lasts without a heartbeat. Shorter returns a dead worker's hop sooner, longer tolerates longer
    pauses of a living one. With the sweep it bounds the recovery: 61 s by default."""
    heartbeat: Span = timedelta(seconds=15)
    """Between heartbeats. At most a third of the lease, so that two may fail."""
    poll_interval: Span = timedelta(seconds=1)
    """Between looks at the queue when nothing wakes the worker: what a lost NOTIFY costs."""
    sweep_interval: Span = timedelta(seconds=1)
    """Between sweeps for leases, rests, deadlines and ttls that are over. An idle sweep reads two indexes."""
    grace: Span = timedelta(seconds=20)
    """After SIGTERM: how long handlers may finish before their leases are given back."""
    handler_timeout: Span = timedelta(minutes=15)
    """The longest that one attempt may take, unless its mode says otherwise. A hung handler is a failed attempt."""
    database_timeout: Span = timedelta(seconds=30)
    """The longest that one round against the database may take."""

    @model_validator(mode="after")
    def _beats_fit(self) -> Self:
        if self.heartbeat * 3 > self.lease:
            raise ValueError(f"heartbeat ({self.heartbeat}) must be at most a third of lease ({self.lease})")
        return self


class HistorySettings(Section):
    """What is remembered."""

    keep: Annotated[Span, Field(ge=timedelta(days=1))] = timedelta(days=90)
    """How long a task is remembered after it was made, once it is over. Longer answers later questions, and takes more
    of the disk; the same idempotency key is a new task afterwards. It goes by the week: up to seven days more."""


class IngressSettings(Section):
    """The HTTP side."""

    host: str = "127.0.0.1"
    """Only this machine by default: put a reverse proxy with TLS before it to go further."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8420
    public_url: str = ""
    """How a phone reaches this ingress; approval links begin with it. Empty: http://host:port."""
    max_body: Annotated[int, Field(ge=1024)] = 4_194_304
    """Bytes of a request's body; larger ones are refused with 413. A group of 4,000 alerts as Alertmanager sends it has
    about as many; `max_alerts` there keeps groups smaller."""
    max_depth: Annotated[int, Field(ge=1)] = 100_000
    """Open hops beyond which new tasks are refused with 429 and Retry-After."""


class GuardianSettings(Section):
    """What a person must approve, and for how long they may think."""

    approval_ttl: Span = timedelta(hours=24)
    """How long a destructive plan waits for a decision before it expires, unless the task's own ttl ends sooner."""
    urgent_ttl: Span = timedelta(hours=1)
    """The same for urgent tasks, which page."""
    approval_secret: SecretStr = SecretStr("")
    """Key of the approval links' HMAC. Empty: made once and kept in the data directory."""
    household_allowlist: tuple[str, ...] = ("media_player", "light", "climate", "scene")
    """Home Assistant domains that a household member may use without asking."""
