"""Enqueues as fast as it can: `python -m tests.faults.enqueuer --dsn …`. It prints the id of each task it got a receipt
for, and nothing else.
"""

from __future__ import annotations

import argparse
import asyncio

from tests.queue.driving import submission
from tracekit.postgres import open_pool
from tracekit.queue import Queue


async def storm(dsn: str, name: str, lanes: int) -> None:
    async with await open_pool(dsn, min_size=lanes, max_size=lanes, name="storm", autocommit=True) as pool:
        queue = Queue(pool)

        async def lane(number: int) -> None:
            count = 0
            while True:
                # One task, some, and some that are known already.
                keys = [f"{name}-{number}-{count + offset}" for offset in range(1 + count % 4)]
                count += max(1, len(keys) - 1)
                receipts = await queue.enqueue([submission("storm", key=key) for key in keys])
                print("\n".join(receipt.task_id for receipt in receipts), flush=True)

        await asyncio.gather(*(lane(number) for number in range(lanes)))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dsn", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--lanes", type=int, default=4)
    arguments = parser.parse_args()
    asyncio.run(storm(arguments.dsn, arguments.name, arguments.lanes))


if __name__ == "__main__":
    main()
