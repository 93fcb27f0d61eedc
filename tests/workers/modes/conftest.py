"""A house, and the modes that act on it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.workers.modes.driving import Driver, settings_for
from tracekit.demo.home_assistant import HomeAssistantStandIn
from tracekit.queue import Queue


@pytest.fixture
async def house() -> AsyncIterator[HomeAssistantStandIn]:
    async with HomeAssistantStandIn(token="a-token-of-the-house").serving() as served:
        yield served


@pytest.fixture
async def driver(queue: Queue, house: HomeAssistantStandIn, tmp_path: Path) -> AsyncIterator[Driver]:
    async with httpx.AsyncClient() as http:
        yield Driver(queue, settings_for(tmp_path, house), http)
