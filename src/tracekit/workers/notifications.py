"""Telling people: the outbox's notifications over ntfy and Pushover, or into the log where neither is configured.

Who gets what:

- The operator's normal notifications go to the ntfy topic. Urgent ones page through Pushover (emergency priority: it
  repeats until somebody acknowledges), or over ntfy with the highest priority where Pushover is off or fails.
- A notification for the requester goes the operator's way if the requester is an operator. A household member has no
  address in the configuration, so theirs goes to nobody's phone: their surface tells them the task's plain status (P7),
  and the operator's topic is not the place for somebody else's words.
- Restricted content never leaves (P8). Whoever writes a notice keeps it out; here the notice of a restricted task loses
  its title, body and links, and every text loses the credentials in it.

Delivery is at least once. On ntfy a repeat replaces what it repeats (`sequence_id`), and so does the next notification
of the same task: the buttons of an approval go when its outcome comes. Pushover has no key against repeats: a page can
come twice if its receipt could not be recorded.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import httpx
import structlog
from opentelemetry.instrumentation.utils import suppress_http_instrumentation

from tracekit import instruments
from tracekit.config import Settings
from tracekit.cost.warnings import BUDGET_KINDS
from tracekit.envelope import DataTier
from tracekit.errors import TracekitError
from tracekit.queue.model import Json
from tracekit.queue.outbox import Notification
from tracekit.tracing.secrets import redact_text
from tracekit.workers.words import printable

log = structlog.get_logger()

NTFY_MESSAGE = 4_095
"""Bytes of a message; ntfy makes an attachment of a longer one."""
NTFY_REQUEST = 8_000
"""Bytes of a whole request as JSON; ntfy reads twice its message limit (4,096)."""
PUSHOVER_MESSAGE = 1_024
PUSHOVER_TITLE = 250
PUSHOVER_URL = 512
"""Characters, as Pushover's API states them."""
PAGE_EVERY = 60
"""Seconds between two pages of one emergency; Pushover takes no less than 30."""
PAGE_AT_MOST = 10_800
"""Seconds for which Pushover goes on paging at most."""

BUTTONS = {"approve": "Approve", "reject": "Reject", "defer": "Defer"}
"""Decisions and what their buttons say. ntfy shows three at most."""

_TIMEOUT = httpx.Timeout(20, connect=5)
_LONGEST = 60.0
"""Seconds for a whole exchange: a server that answers a byte at a time would hold up every other notification."""
_MOST_ANSWER = 65_536
"""Bytes of an answer."""


class DeliveryFailed(TracekitError):
    """A channel did not take a notification. Says which and why, without addresses, topics or credentials."""


class Deliverer:
    """Delivers what the outbox hands it; returns a receipt to keep. Raises `DeliveryFailed`, and it is tried again."""

    def __init__(self, settings: Settings, http: httpx.AsyncClient) -> None:
        self._settings = settings
        self._http = http

    async def __call__(self, notification: Notification) -> Json:
        """Deliver one notification over the channel that is right for it."""
        notification_log = log.bind(
            task_id=notification.task_id, trace_id=notification.trace_id, notification=notification.kind
        )
        message = _Message(notification)
        if not self._for_operator(notification):
            notification_log.info("notification.kept", reason="the requester has no address")
            return _counted("log", {"channel": "log", "reason": "the requester has no address"})
        paging = notification.urgent and self._pages
        # Delivering is no part of any task's trace: it makes no spans.
        with suppress_http_instrumentation():
            if paging:
                try:
                    return await self._counting("pushover", message)
                except DeliveryFailed as failed:
                    if not self._settings.ntfy.topic:
                        raise
                    notification_log.warning("notification.page_failed", error=str(failed), instead="ntfy")
            if self._settings.ntfy.topic:
                receipt = await self._counting("ntfy", message)
                return {**receipt, "instead_of": "pushover"} if paging else receipt
        notification_log.warning("notification", title=message.title, urgent=notification.urgent)
        return _counted("log", {"channel": "log"})

    @property
    def _pages(self) -> bool:
        pushover = self._settings.pushover
        return bool(pushover.user.get_secret_value() and pushover.token.get_secret_value())

    def _for_operator(self, notification: Notification) -> bool:
        return notification.recipient != "requester" or self._settings.role(notification.requester) == "operator"

    async def _counting(self, channel: str, message: _Message) -> dict[str, Json]:
        try:
            receipt = await (self._page(message) if channel == "pushover" else self._publish(message))
        except DeliveryFailed:
            instruments.NOTIFICATIONS.labels(channel, "failed").inc()
            raise
        return _counted(channel, receipt)

    async def _publish(self, message: _Message) -> dict[str, Json]:
        ntfy = self._settings.ntfy
        token = ntfy.token.get_secret_value()
        status, answer = await self._post(
            "ntfy",
            ntfy.url,
            content=message.for_ntfy(ntfy.topic),
            headers={"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})},
        )
        if status != 200 or not isinstance(answer.get("id"), str):
            raise DeliveryFailed(f"ntfy refused the notification ({status}{_reason(answer.get('error'))})")
        return {"channel": "ntfy", "id": answer["id"]}

    async def _page(self, message: _Message) -> dict[str, Json]:
        pushover = self._settings.pushover
        expire = int(self._settings.guardian.urgent_ttl.total_seconds())
        status, answer = await self._post(
            "Pushover",
            f"{pushover.url.rstrip('/')}/1/messages.json",
            data={
                "token": pushover.token.get_secret_value(),
                "user": pushover.user.get_secret_value(),
                "priority": "2",
                "retry": str(PAGE_EVERY),
                # As long as an urgent decision is waited for.
                "expire": str(min(max(expire, PAGE_EVERY), PAGE_AT_MOST)),
                **message.for_pushover(),
            },
        )
        receipt = answer.get("receipt")
        if status != 200 or answer.get("status") != 1 or not isinstance(receipt, str):
            errors = answer.get("errors")
            first = errors[0] if isinstance(errors, list) and errors else None
            raise DeliveryFailed(f"Pushover refused the notification ({status}{_reason(first)})")
        return {"channel": "pushover", "receipt": receipt}

    async def _post(self, channel: str, url: str, **what: Any) -> tuple[int, dict[str, Any]]:
        # Uncompressed: a small body may unfold to any size.
        headers = {**what.pop("headers", {}), "Accept-Encoding": "identity"}
        body = bytearray()
        try:
            async with (
                asyncio.timeout(_LONGEST),
                self._http.stream(
                    "POST", url, headers=headers, timeout=_TIMEOUT, follow_redirects=False, **what
                ) as response,
            ):
                async for chunk in response.aiter_raw():
                    body += chunk
                    if len(body) > _MOST_ANSWER:
                        raise DeliveryFailed(f"{channel} answered more than {_MOST_ANSWER} bytes")
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            raise DeliveryFailed(f"{channel} cannot be reached ({type(error).__name__})") from None
        try:
            answer = json.loads(bytes(body))
        except (ValueError, RecursionError):
            answer = None
        return response.status_code, answer if isinstance(answer, dict) else {}


class _Message:
    """A notification as it may be sent: redacted, and without anything if its task is restricted."""

    def __init__(self, notification: Notification) -> None:
        data: Mapping[str, Json] = notification.data
        self.task_id = notification.task_id
        self.kind = notification.kind
        self.urgent = notification.urgent
        self.links: dict[str, str] = {}
        self.url = ""
        # What is sent under one name takes the place of what was sent before under it.
        replaces = data.get("replaces")
        self.sequence = f"{self.kind}:{replaces}" if isinstance(replaces, str) else self.task_id
        # A budget's warning says nothing of the task that happened to spend last.
        if notification.data_tier == DataTier.RESTRICTED.value and self.kind not in BUDGET_KINDS:
            self.title = "A restricted task needs you" if notification.urgent else "News of a restricted task"
            self.body = f"See `tracekit tasks show {notification.task_id}`."
            return
        self.title = " ".join(printable(redact_text(notification.title)).split()) or "tracekit"
        self.body = printable(redact_text(notification.body)).strip()
        links = data.get("links")
        if isinstance(links, dict):
            self.links = {decision: links[decision] for decision in BUTTONS if _is_url(links.get(decision))}
        url = data.get("url", self.links.get("approve"))
        # A link shows the plan and asks when it is opened; it decides nothing by that.
        self.url = url if _is_url(url) else ""

    def for_ntfy(self, topic: str) -> bytes:
        """The request's body (https://docs.ntfy.sh/publish/#publish-as-json)."""
        payload: dict[str, Json] = {
            "topic": topic,
            "title": _cut(self.title, 250),
            "priority": 5 if self.urgent else 4 if self.links else 3,
            "tags": [self.kind[:40]],
            "sequence_id": self.sequence,
            "actions": [
                {"action": "http", "label": BUTTONS[decision], "url": url, "method": "POST", "clear": True}
                for decision, url in self.links.items()
            ],
        }
        limit = NTFY_MESSAGE
        while True:
            payload["message"] = _cut(self.body or self.title, limit)
            content = json.dumps(payload, ensure_ascii=False).encode()
            if len(content) <= NTFY_REQUEST or limit < 100:
                return content
            limit = limit * 3 // 4

    def for_pushover(self) -> dict[str, str]:
        """Title, message and link (https://pushover.net/api)."""
        fields = {"title": self.title[:PUSHOVER_TITLE], "message": (self.body or self.title)[:PUSHOVER_MESSAGE]}
        if self.url and len(self.url) <= PUSHOVER_URL:
            fields |= {"url": self.url, "url_title": "Decide" if self.links else "Open"}
        return fields


def _counted(channel: str, receipt: dict[str, Json]) -> dict[str, Json]:
    instruments.NOTIFICATIONS.labels(channel, "delivered").inc()
    return receipt


def _is_url(value: object) -> bool:
    return isinstance(value, str) and value.startswith(("https://", "http://"))


def _reason(value: object) -> str:
    return f": {redact_text(value)[:200]}" if isinstance(value, str) and value else ""


def _cut(text: str, size: int) -> str:
    """At most `size` bytes of UTF-8, never half a character."""
    raw = text.encode()
    return text if len(raw) <= size else raw[: size - 3].decode(errors="ignore") + "…"
