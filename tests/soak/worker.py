"""A worker process of the soak: `python -m tests.soak.worker --dsn …`. It prints its worker's id once it serves."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from datetime import timedelta

from tests.faults.running import running
from tests.soak.modes import ALL
from tests.support.logs import plain_logs
from tests.support.processes import background
from tracekit.config import WorkerSettings

LEASE, SWEEP, CONCURRENCY = 3.0, 0.3, 4

SETTINGS = WorkerSettings(
    concurrency=CONCURRENCY,
    lease=timedelta(seconds=LEASE),
    heartbeat=timedelta(seconds=LEASE / 4),
    poll_interval=timedelta(seconds=0.5),
    sweep_interval=timedelta(seconds=SWEEP),
    grace=timedelta(seconds=5),
    database_timeout=timedelta(seconds=10),
)


async def end_with_parent() -> None:
    """Whoever kills the soak has not heard of its processes, and they would go on for ever."""
    parent = os.getppid()
    while os.getppid() == parent:  # noqa: ASYNC110 - the kernel has no event for it that asyncio could wait for
        await asyncio.sleep(1)
    os._exit(1)


async def serve(dsn: str) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    # A connection that was cut is to be noticed within the soak's shortest run.
    async with background(end_with_parent()), running(dsn, ALL, SETTINGS, test_interval=timedelta(seconds=2)) as here:
        print(here.worker.id, flush=True)
        await stop.wait()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dsn", required=True)
    plain_logs(logging.ERROR, sys.stderr)
    asyncio.run(serve(parser.parse_args().dsn))


if __name__ == "__main__":
    main()
