"""A worker process whose handlers say much through the SDK: `python -m tests.soak.chatty --dsn …`.

It prints its worker's id once it serves and, at its end, how many of its spans were dropped.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
from datetime import timedelta

from opentelemetry import trace

from tests.faults.modes import Work
from tests.faults.running import running
from tests.soak.worker import end_with_parent
from tests.support.processes import background
from tracekit.config import WorkerSettings
from tracekit.queue import Done, Outcome
from tracekit.tracing.logs import configure_logging
from tracekit.tracing.sdk import configure_tracing
from tracekit.workers.mode import Hop, Mode

SPANS = 20
"""Of each hop, beside its own."""


class Chatty(Mode[Work]):
    name = "chatty"
    input_type = Work

    async def run(self, hop: Hop[Work]) -> Outcome:
        tracer = trace.get_tracer("chatty")
        for number in range(SPANS):
            with tracer.start_as_current_span(f"detail {number}"):
                pass
        return Done(summary="x" * 500)


async def serve(dsn: str) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    tracing = configure_tracing(dsn=dsn)
    settings = WorkerSettings(poll_interval=timedelta(milliseconds=100))
    async with background(end_with_parent()), running(dsn, [Chatty], settings) as here:
        print(here.worker.id, flush=True)
        await stop.wait()
    await asyncio.to_thread(tracing.shutdown)
    print(tracing.dropped, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dsn", required=True)
    configure_logging("json", "warning")
    asyncio.run(serve(parser.parse_args().dsn))


if __name__ == "__main__":
    main()
