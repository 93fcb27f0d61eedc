"""Running shippers, in this process and in others."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from tracekit.tracing.otlp import Collector
from tracekit.tracing.shipper import SpanShipper


def shipper(dsn: str, collector: Collector | None, **settings: Any) -> SpanShipper:
    """A shipper that does not keep a test waiting."""
    return SpanShipper(dsn, collector, **{"interval": 0.02, "backoff": (0.01, 0.05), **settings})


@asynccontextmanager
async def running(shipper: SpanShipper) -> AsyncIterator[SpanShipper]:
    """Ships during the block."""
    stop = asyncio.Event()
    task = asyncio.create_task(shipper.run(stop))
    try:
        yield shipper
    finally:
        stop.set()
        await task


@contextmanager
def process(dsn: str, batch_rows: int) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ships during the block, unless it is killed; to where the environment says."""
    started = subprocess.Popen(
        [sys.executable, "-m", "tests.tracing.ship", dsn, str(batch_rows)],
        stdin=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        env=dict(os.environ),
    )
    try:
        yield started
    finally:
        started.communicate()
