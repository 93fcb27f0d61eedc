"""Who takes part, how each is configured, and how its work is verified in the database."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, LiteralString

Options = dict[str, Any]

DRAIN, DRAIN_TWO, SINGLE, BULK, LATENCY, CLAIM = "drain", "drain-2", "enqueue", "bulk", "latency", "claim"


@dataclass(frozen=True)
class Family:
    """What is common to all configurations of one contestant. `left` and `done` are queries of one number."""

    name: str
    module: str
    left: LiteralString
    done: LiteralString | None
    """Of finished jobs, where a trace of them stays."""
    fills: Mapping[str, LiteralString] = field(default_factory=dict)
    fill_parameters: Callable[[], Mapping[str, str]] = dict
    """What one fill takes beside `fill_values`."""
    python: str = sys.executable
    filler: Options = field(default_factory=dict)
    """Options for filling where that is not what is measured."""


@dataclass(frozen=True)
class Contestant:
    """One configuration of a family in some scenes. `share` of the hops are enough where it is slow."""

    family: Family
    name: str
    scenes: frozenset[str]
    options: Options = field(default_factory=dict)
    share: float = 1.0

    @property
    def role(self) -> str:
        """tracekit, floor, or peer."""
        return self.family.name if self.family.name in ("tracekit", "floor") else "peer"


FLOOR = Family(
    "floor",
    "benchmarks.floor",
    left="SELECT count(*) FROM (SELECT FROM jobs LIMIT 1) AS found",
    done=None,
)

_PAYLOAD: LiteralString = "jsonb_build_object('text', rpad(lpad(n::text, 10, '0'), 288, 'x'))"
_PGQUEUER_JOBS: LiteralString = f"""
INSERT INTO pgqueuer (priority, entrypoint, payload, status, execute_after)
SELECT 0, %(entrypoint)s, convert_to({_PAYLOAD}::text, 'UTF8'), 'queued', now() + %(later)s * interval '1 day'
FROM generate_series(1, %(count)s) AS n
"""
_PGQUEUER_LOG: LiteralString = """
INSERT INTO pgqueuer_log (job_id, status, priority, entrypoint, aggregated)
SELECT n, 'successful', 0, 'noop', true FROM generate_series(1, %(count)s) AS n
"""
_PROCRASTINATE_JOBS: LiteralString = f"""
INSERT INTO procrastinate_jobs (queue_name, task_name, args, status, scheduled_at)
SELECT %(queue)s, 'noop', {_PAYLOAD}, %(status)s::procrastinate_job_status,
       CASE WHEN %(later)s > 0 THEN now() + interval '1 day' END
FROM generate_series(1, %(count)s) AS n
"""

# Where a queue keeps both what waits and what is done, `left` must not read it all while others work.
_PEERS = {
    "pgqueuer": Family(
        "pgqueuer",
        "benchmarks.peers.pgqueuer",
        left="SELECT count(*) FROM (SELECT FROM pgqueuer LIMIT 1) AS found",
        done="SELECT count(*) FROM pgqueuer_log WHERE status = 'successful'",
        filler={"pool": True},
        fills={**dict.fromkeys(("waiting", "later", "elsewhere"), _PGQUEUER_JOBS), "finished": _PGQUEUER_LOG},
    ),
    "procrastinate": Family(
        "procrastinate",
        "benchmarks.peers.procrastinate",
        left="SELECT count(*) FROM (SELECT FROM procrastinate_jobs WHERE status IN ('todo', 'doing') LIMIT 1) AS found",
        done="SELECT count(*) FROM procrastinate_jobs WHERE status = 'succeeded'",
        fills=dict.fromkeys(("waiting", "later", "elsewhere", "finished"), _PROCRASTINATE_JOBS),
    ),
    "awa": Family(
        "awa",
        "benchmarks.peers.awa",
        left="SELECT 0",
        # Of what it has completed it keeps the count alone before long.
        done="SELECT (SELECT coalesce(sum(completed_count), 0) FROM awa.receipt_completion_batches)"
        " + (SELECT count(*) FROM awa.done_entries)"
        " + (SELECT coalesce(sum(pruned_completed_count), 0) FROM awa.queue_terminal_rollups)",
    ),
}  # fmt: skip

_ALL = frozenset({DRAIN, DRAIN_TWO, SINGLE, BULK, LATENCY, CLAIM})


def _peers(pythons: Mapping[str, str]) -> list[Contestant]:
    families = {name: replace(_PEERS[name], python=python) for name, python in pythons.items()}
    found: list[Contestant] = []
    if family := families.get("pgqueuer"):
        best = {"pool": True, "batch": 500, "uvloop": True}
        found += [
            Contestant(family, "pgqueuer, recommended", frozenset({DRAIN, LATENCY}), share=0.5),
            Contestant(family, "pgqueuer, asyncpg, 500, uvloop", _ALL, best),
            Contestant(family, "pgqueuer, psycopg, 500", _ALL - {CLAIM}, {"driver": "psycopg", "batch": 500}, 0.5),
        ]
    if family := families.get("procrastinate"):
        found += [
            Contestant(family, "procrastinate, recommended", frozenset({DRAIN}), share=0.1),
            Contestant(family, "procrastinate, 30 at once", _ALL, {"concurrency": 30}, 0.1),
        ]
    if family := families.get("awa"):
        tuned: Options = {"queue": {"max_workers": 512, "claim_batch_size": 512}, "connections": 20, "poll_ms": 20}
        found += [
            Contestant(family, "awa, recommended", frozenset({DRAIN}), share=0.3),
            Contestant(family, "awa, 512 workers", _ALL - {CLAIM}, tuned, 0.3),
        ]
    return found


def contestants(pythons: Mapping[str, str], concurrency: int) -> list[Contestant]:
    """All of them; `pythons` are the interpreters of the peers that are installed."""
    # Here, and not above: it imports the whole program, which `--help` need not.
    from benchmarks import scenes

    tracekit = Family(
        "tracekit",
        "benchmarks.scenes",
        left="SELECT count(*) FROM (SELECT FROM tracekit.queue LIMIT 1) AS found",
        done="SELECT count(*) FROM tracekit.tasks WHERE state = 'done'",
        fills=scenes.FILLS,
        fill_parameters=scenes.fill_parameters,
    )
    at: Options = {"concurrency": concurrency}
    recording = {"recording": True}
    return [
        Contestant(tracekit, "tracekit", _ALL, at),
        Contestant(tracekit, "tracekit, tracing off", frozenset({DRAIN}), {**at, "tracing": False}),
        Contestant(FLOOR, "floor, bare", frozenset({DRAIN, SINGLE, LATENCY})),
        Contestant(FLOOR, "floor, bare, fused", frozenset({DRAIN}), {"fused": True}),
        Contestant(FLOOR, "floor, recording", frozenset({DRAIN, DRAIN_TWO}), recording),
        Contestant(FLOOR, "floor, recording, fused", frozenset({DRAIN, DRAIN_TWO}), {**recording, "fused": True}),
        Contestant(FLOOR, "floor, bare, JSON", frozenset({BULK})),
        Contestant(FLOOR, "floor, bare, COPY", frozenset({BULK}), {"copy": True}),
        Contestant(FLOOR, "floor, recording, JSON", frozenset({BULK}), recording),
        Contestant(FLOOR, "floor, recording, COPY", frozenset({BULK}), {**recording, "copy": True}),
        *_peers(pythons),
    ]


def fill_values(kind: str) -> dict[str, Any]:
    """What the peers' fills take beside `count`: the same statement, with another value for another kind."""
    return {
        "later": int(kind == "later"),
        "entrypoint": "another" if kind == "elsewhere" else "noop",
        "queue": "another" if kind == "elsewhere" else "bench",
        "status": "succeeded" if kind == "finished" else "todo",
    }
