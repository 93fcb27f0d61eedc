"""The demo: the main job on real input, in under a minute."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tracekit.demo.week import Written
    from tracekit.postgres import Connection
    from tracekit.workers.substrate import Substrate


def run(*, keep: bool = False, as_json: bool = False) -> int:
    """Do the main job in a throw-away directory; returns 0 where every step did what it said, else 1.

    `keep`: leave the directory, and say how to look around in it. `as_json`: what became of each step goes to stdout as
    JSON, and the telling to stderr.
    """
    # The command line imports this package to have the command; what it needs is imported when it runs.
    from tracekit.demo.show import run as show

    return show(keep=keep, as_json=as_json)


async def write_week(substrate: Substrate, seed: int) -> Written:
    """Write a synthetic week into the database. Raises `WeekError` where there is one."""
    from tracekit.demo.week import write

    # So that this week's record has its partition, and the synthetic days do not take its place.
    await substrate.queue.keep_history(substrate.settings.history.keep)
    async with _alone(substrate) as connection:
        return await write(connection, substrate.settings, seed=seed)


async def remove_week(substrate: Substrate) -> int:
    """Take the synthetic week away; returns how many tasks it had."""
    from tracekit.demo.week import remove

    async with _alone(substrate) as connection:
        return await remove(connection)


@asynccontextmanager
async def _alone(substrate: Substrate) -> AsyncIterator[Connection]:
    from tracekit.postgres import connect

    pooler = substrate.lease is None and substrate.settings.pooler == "transaction"
    connection = await connect(substrate.dsn, name="tracekit demo", autocommit=True, transaction_pooler=pooler)
    async with connection:
        yield connection
