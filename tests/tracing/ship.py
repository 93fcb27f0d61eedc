"""A process that ships until its standard input is closed: `python -m tests.tracing.ship DSN BATCH_ROWS`."""

from __future__ import annotations

import asyncio
import sys

from tracekit.tracing.otlp import collector_from_environment
from tracekit.tracing.shipper import SpanShipper


async def main(dsn: str, batch_rows: int) -> None:
    stop = asyncio.Event()
    shipper = SpanShipper(dsn, collector_from_environment(), batch_rows=batch_rows, interval=0.02)
    running = asyncio.create_task(shipper.run(stop))
    await asyncio.to_thread(sys.stdin.read)
    stop.set()
    await running


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
