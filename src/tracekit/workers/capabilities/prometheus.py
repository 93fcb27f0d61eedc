"""`prometheus.query`: an instant query over Prometheus's HTTP API. It reads and changes nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, StringConstraints

from tracekit.config import Settings
from tracekit.queue.model import Json
from tracekit.queue.payload import plain_text
from tracekit.workers.capabilities import Capability, Misconfigured, Refused, Unavailable
from tracekit.workers.capabilities.http import request
from tracekit.workers.mode import Hop

MOST_SERIES = 20
MOST_CHARACTERS = 20_000
"""Of the kept series as JSON."""
_TIMEOUT = "10s"


class Query(BaseModel):
    """A PromQL expression."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    query: Annotated[str, StringConstraints(min_length=1, max_length=4_000)]


class QueryPrometheus(Capability[Query]):
    """Asks Prometheus what an expression says now."""

    name = "prometheus.query"
    arguments_type = Query

    def describe(self, arguments: Query) -> str:
        """The expression."""
        return f"ask Prometheus for {arguments.query}"

    def category(self, arguments: Query) -> str:
        """`prometheus`."""
        return "prometheus"

    def destructive(self, arguments: Query) -> bool:
        """Never."""
        return False

    def repeatable(self, arguments: Query) -> bool:
        """Yes."""
        return True

    def missing(self, settings: Settings) -> str | None:
        """It needs an address."""
        return None if settings.prometheus.url else "Prometheus is not configured: set prometheus.url"

    async def run(self, hop: Hop[Any], arguments: Query, idempotency_key: str) -> Json:
        """The first series of the answer; `series` counts all of them."""
        status, answer = await request(
            hop,
            "Prometheus",
            "POST",
            hop.services.settings.prometheus.url.rstrip("/") + "/api/v1/query",
            setting="prometheus.url",
            acts=False,
            form={"query": arguments.query, "timeout": _TIMEOUT},
        )
        if not isinstance(answer, dict) or answer.get("status") not in ("success", "error"):
            raise Misconfigured(
                f"what answers at prometheus.url is not Prometheus ({status})", hint="check prometheus.url"
            )
        if answer["status"] == "error":
            if answer.get("errorType") in ("timeout", "canceled", "unavailable", "internal"):
                raise Unavailable(f"Prometheus could not answer: {answer['errorType']}")
            raise Refused(f"Prometheus does not understand the query: {plain_text(str(answer.get('error')), 300)}")
        data = answer.get("data")
        kind, result = (data.get("resultType"), data.get("result")) if isinstance(data, dict) else (None, None)
        if kind in ("scalar", "string"):
            result = [{"metric": {}, "value": result}]
        series = result if isinstance(result, list) else []
        return {"type": kind, "series": len(series), "values": _bounded(series)}

    async def observe(
        self, hop: Hop[Any], arguments: Query, expect: Mapping[str, Json], result: Json
    ) -> dict[str, Json]:
        """What was read is what is known: it is not asked again."""
        return {"prometheus": {"series": result.get("series") if isinstance(result, dict) else None}}


def _bounded(series: list[Json]) -> list[Json]:
    kept: list[Json] = []
    left = MOST_CHARACTERS
    for one in series[:MOST_SERIES]:
        left -= len(json.dumps(one))
        if left < 0:
            break
        kept.append(one)
    return kept
