"""A worker process for tests: `python -m tests.faults.worker --dsn …`. It prints a line once it serves.

With `--held` it prints one before, and comes to the database when SIGCONT lets it go. One that was stopped at its work
may have sent off a claim, which the server carries out whenever it comes to it.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from datetime import timedelta

from tests.faults.modes import ALL
from tests.faults.running import running
from tests.support.logs import plain_logs
from tracekit.config import WorkerSettings


async def serve(arguments: argparse.Namespace) -> None:
    seconds = timedelta(seconds=1)
    settings = WorkerSettings(
        concurrency=arguments.concurrency,
        lease=arguments.lease * seconds,
        heartbeat=arguments.lease / 4 * seconds,
        poll_interval=arguments.poll * seconds,
        sweep_interval=0.2 * seconds,
        grace=arguments.grace * seconds,
        database_timeout=10 * seconds,
    )
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    if arguments.held:
        let_go = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGCONT, let_go.set)
        print("held", flush=True)
        await let_go.wait()
    async with running(arguments.dsn, ALL, settings, sweep=not arguments.no_sweep) as here:
        print(here.worker.id, flush=True)
        await stop.wait()
        here.stop.set()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dsn", required=True)
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--lease", type=float, default=2.0)
    parser.add_argument("--poll", type=float, default=0.5)
    parser.add_argument("--grace", type=float, default=5.0)
    parser.add_argument("--no-sweep", action="store_true")
    parser.add_argument("--held", action="store_true")
    plain_logs(logging.WARNING, sys.stderr)
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
