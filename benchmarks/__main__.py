"""Runs the scenes in interleaved rounds and prints one table: medians, their spread, and ratios to the floor."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable
from pathlib import Path

import structlog
from psycopg import sql

from benchmarks import floor, scenes
from tracekit.postgres import EmbeddedServer, Pool, connect, migrate, open_pool
from tracekit.queue import Queue

Figures = dict[str, list[float]]


async def _round(pool: Pool, dsn: str, count: int, figures: Figures) -> None:
    queue = Queue(pool)
    payload = scenes.payload()

    for name, recording in (("drain: floor, bare", False), ("drain: floor, recording", True)):
        async with pool.connection() as connection:
            await floor.fill(connection, count, payload)
        figures[name].append(count / await _timed(floor.drain(pool, 100, recording=recording)))
    for name, on in (("drain: tracekit, tracing on", True), ("drain: tracekit, tracing off", False)):
        with scenes.tracing(on):
            figures[name].append(count / await scenes.drain(pool, queue, dsn, count, 100))

    async def floor_client(each: int) -> None:
        async with pool.connection() as connection:
            for _ in range(each):
                await floor.insert_one(connection, payload)

    async def tracekit_client(each: int) -> None:
        for _ in range(each):
            await queue.enqueue([scenes.task()])

    single = count // 4
    for name, client in (
        ("enqueue, 4 clients: floor", floor_client),
        ("enqueue, 4 clients: tracekit", tracekit_client),
    ):
        took = await _timed(asyncio.gather(*(client(single // 4) for _ in range(4))))
        figures[name].append(single / took)

    submissions = [scenes.task() for _ in range(count)]

    async def bulk() -> None:
        for start in range(0, count, 1000):
            await queue.enqueue(submissions[start : start + 1000])

    async def floor_bulk() -> None:
        async with pool.connection() as connection:
            for _ in range(0, count, 1000):
                await floor.fill(connection, 1000, payload)

    figures["enqueue in bulk: floor"].append(count / await _timed(floor_bulk()))
    figures["enqueue in bulk: tracekit"].append(count / await _timed(bulk()))
    await _empty(pool)

    for name, found in (
        ("latency: floor", await floor.latency(pool, payload, 200)),
        ("latency: tracekit", await scenes.latency(pool, queue, dsn, 200)),
    ):
        ordered = sorted(found)
        figures[f"{name}, p50 ms"].append(ordered[len(ordered) // 2] * 1000)
        figures[f"{name}, p99 ms"].append(ordered[int(len(ordered) * 0.99)] * 1000)
    await _empty(pool)


async def _timed(run: Awaitable[object]) -> float:
    began = time.perf_counter()
    await run
    return time.perf_counter() - began


async def _empty(pool: Pool) -> None:
    async with pool.connection() as connection:
        await connection.execute("TRUNCATE floor_jobs, floor_spans, floor_events")
        tables = await (
            await connection.execute(
                "SELECT tablename FROM pg_tables WHERE schemaname = 'tracekit' AND tablename <> 'schema_migrations'"
            )
        ).fetchall()
        names = sql.SQL(", ").join(sql.Identifier("tracekit", row[0]) for row in tables)
        await connection.execute(sql.SQL("TRUNCATE {}").format(names))


PAIRS = [
    ("drain: tracekit, tracing on", "drain: floor, bare"),
    ("drain: tracekit, tracing on", "drain: floor, recording"),
    ("drain: tracekit, tracing on", "drain: tracekit, tracing off"),
    ("enqueue, 4 clients: tracekit", "enqueue, 4 clients: floor"),
    ("enqueue in bulk: tracekit", "enqueue in bulk: floor"),
    ("latency: tracekit, p50 ms", "latency: floor, p50 ms"),
    ("latency: tracekit, p99 ms", "latency: floor, p99 ms"),
]


def _table(figures: Figures) -> str:
    lines = ["| what | median | min | max |", "|---|--:|--:|--:|"]
    for name, values in figures.items():
        unit = "ms" if name.endswith("ms") else "/s"
        digits = 2 if unit == "ms" else 0
        cells = " | ".join(f"{value:,.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
        lines.append(f"| {name.removesuffix(' ms')} ({unit}) | {cells} |")
    lines += ["", "| ratio, round by round | median | min | max |", "|---|--:|--:|--:|"]
    for ours, theirs in PAIRS:
        ratios = [a / b for a, b in zip(figures[ours], figures[theirs], strict=True)]
        cells = " | ".join(f"{value:.2f}" for value in (statistics.median(ratios), min(ratios), max(ratios)))
        lines.append(f"| {ours.removesuffix(' ms')} ÷ {theirs.removesuffix(' ms')} | {cells} |")
    return "\n".join(lines)


async def _run(home: Path, count: int, rounds: int) -> Figures:
    figures: Figures = defaultdict(list)
    with EmbeddedServer(home).acquire() as lease:
        async with await connect(lease.dsn) as connection:
            await migrate(connection)
        pool = await open_pool(lease.dsn, min_size=4, max_size=12, name="benchmark", autocommit=True)
        try:
            await floor.create(pool)
            for _ in range(rounds):
                await _round(pool, lease.dsn, count, figures)
        finally:
            await pool.close()
    return figures


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--hops", type=int, default=10_000, help="hops in a drain, a multiple of 1000 (default 10000)")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds (default 3)")
    parser.add_argument("--json", action="store_true", help="print the figures of each round as JSON")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    home = Path(tempfile.mkdtemp(prefix="tkb-", dir="/tmp"))
    home.chmod(0o711)
    try:
        figures = asyncio.run(_run(home, arguments.hops, arguments.rounds))
    finally:
        shutil.rmtree(home, ignore_errors=True)
    if arguments.json:
        print(json.dumps(figures, indent=1))
    else:
        print(f"{os.cpu_count()} processors, {arguments.rounds} rounds of {arguments.hops} hops of 300 bytes\n")
        print(_table(figures))


if __name__ == "__main__":
    main()
