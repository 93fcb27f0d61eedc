"""What every endpoint needs, and what they do alike."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from prometheus_client.registry import Collector
from starlette.requests import Request

from tracekit import ids, instruments
from tracekit.config import Settings
from tracekit.cost import Ledger
from tracekit.envelope import Fault
from tracekit.ingress.auth import Caller, Tokens, bearer
from tracekit.ingress.body import parse_json, read_body, require_json
from tracekit.ingress.database import RETRY_AFTER, ask
from tracekit.ingress.exchange import exchange_of
from tracekit.ingress.problems import Reason, Refused
from tracekit.instruments import DatabaseGauges
from tracekit.queue import Queue, Receipt, Submission


@dataclass(frozen=True, slots=True)
class Ingress:
    """The parts that the endpoints share."""

    settings: Settings
    queue: Queue
    ledger: Ledger
    tokens: Tokens
    gauges: DatabaseGauges
    collectors: tuple[Collector, ...]
    body_timeout: timedelta
    patience: timedelta
    approval_secret: bytes = field(repr=False)

    def identify(self, request: Request, *, browser: bool = False) -> Caller:
        """Who sends this; `browser`: their token may be a password. Raises `Refused`."""
        given = request.headers.get("authorization")
        caller = self.tokens.caller(bearer(given) if browser else given)
        exchange_of(request).caller = caller
        return caller

    def operator(self, request: Request, *, browser: bool = False) -> Caller:
        """The same, for what only an operator may do. Raises `Refused`."""
        caller = self.identify(request, browser=browser)
        if caller.role != "operator":
            raise Refused(Reason.FORBIDDEN, "only an operator may do that", hint="use an operator's token")
        return caller

    async def body(self, request: Request) -> bytes:
        """The request's body within its bounds. Raises `Refused`."""
        return await read_body(request, limit=self.settings.ingress.max_body, within=self.body_timeout)

    async def json(self, request: Request) -> Any:
        """The request's body as JSON. Raises `Refused`."""
        require_json(request)
        value = parse_json(await self.body(request))
        if isinstance(value, str):
            # JSON inside a string would be read a second time, past all that was just checked.
            raise Refused(Reason.INVALID, "1 fault", faults=[Fault(field="", message="must be an object")])
        return value

    def require_room(self) -> None:
        """Raises `Refused` while the queue is as deep as it may get (Q11)."""
        depth = self.gauges.depth
        if depth is not None and depth >= self.settings.ingress.max_depth:
            raise Refused(
                Reason.QUEUE_FULL,
                f"{depth} hops are open, and no more than {self.settings.ingress.max_depth} may be",
                hint="send it again later; with the same idempotency key it is the same task",
                headers={"Retry-After": str(RETRY_AFTER)},
            )

    async def enqueue(self, submissions: list[Submission]) -> list[Receipt]:
        """Accept tasks, sitting out a short outage. What it returns is durable."""
        receipts = await ask(lambda: self.queue.enqueue(submissions), patience=self.patience)
        found = []
        for submission, receipt in zip(submissions, receipts, strict=True):
            # Asked twice: the first answer was lost with its connection, and the key that was known is our own.
            duplicate = receipt.duplicate and receipt.task_id != submission.envelope.id
            span = instruments.exemplar(receipt.trace_id, ids.receive_span_id(receipt.task_id))
            instruments.INGRESS_TASKS.labels(submission.envelope.surface, str(duplicate).lower()).inc(exemplar=span)
            found.append(Receipt(receipt.task_id, receipt.trace_id, duplicate, receipt.created_at))
        self.gauges.accepted_since += sum(not receipt.duplicate for receipt in found)
        return found


def ingress_of(request: Request) -> Ingress:
    """The parts that a request is served with."""
    ingress = request.app.state.ingress
    assert isinstance(ingress, Ingress)
    return ingress
