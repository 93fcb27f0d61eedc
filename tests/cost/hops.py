"""A hop as its handler sees it, without a worker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import structlog

from tests.cost.driving import PRICES
from tracekit.config import Settings
from tracekit.queue import Position, Queue
from tracekit.workers.mode import Hop, NoInput, Services


def hop_of(queue: Queue, at: Position, http: httpx.AsyncClient | None = None, **settings: Any) -> Hop[NoInput]:
    values: dict[str, Any] = {"home": Path("/nonexistent"), "prices": PRICES, **settings}
    services = Services(Settings(**values), queue, http or httpx.AsyncClient())
    return Hop(at, NoInput(), services, structlog.get_logger())
