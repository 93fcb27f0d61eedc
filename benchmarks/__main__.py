"""The benchmarks' command line: tracekit, the floors and its peers in one run on a throw-away PostgreSQL."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks import plot, report
from benchmarks.contestants import contestants
from benchmarks.measure import Bench
from benchmarks.peers.environments import prepare, requirements
from benchmarks.rounds import SCENES, Figures, Run, Sizes
from benchmarks.server import running
from benchmarks.targets import verdicts

QUICK = Sizes(
    hops=4_000, rounds=2, samples=80, claims=1_500, waiting=50_000, finished=50_000, aside=20_000, parked=2_000,
    memory=10_000, calls=320, longest=5.0,
)  # fmt: skip


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, no peers unless asked for: under 2 minutes")
    parser.add_argument("--rounds", type=int, help="interleaved rounds (default 3)")
    parser.add_argument("--hops", type=int, help="hops in a drain (default 40000)")
    parser.add_argument("--only", metavar="SCENE,…", help=f"of {', '.join(SCENES)}")
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, help="pgqueuer, procrastinate and awa too")
    parser.add_argument("--concurrency", type=int, default=500, help="tracekit's hops in flight (default 500)")
    for name, what in (
        ("waiting", "waiting hops where claims are compared with 10,000"),
        ("finished", "finished hops beside which claims are measured"),
        ("aside", "hops scheduled for later, and hops in another mode"),
        ("parked", "idle waits"),
        ("memory", "hops over which a worker's memory is watched"),
        ("samples", "enqueues in a round of latency"),
        ("calls", "calls of models in one measurement of their accounting"),
    ):
        parser.add_argument(f"--{name}", type=int, metavar="N", help=f"{what} (default {getattr(Sizes, name)})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every figure of every round, and the verdicts")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="the bars as SVG")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parser.add_argument("--cache", type=Path, default=home / "tracekit-bench", help="where the peers are installed")
    return parser.parse_args()


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def _machine() -> str:
    models = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if
              line.startswith("model name")]  # fmt: skip
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} processors ({models[0] if models else platform.machine()}), {memory:.0f} GB"


async def _run(scenes: list[str], sizes: Sizes, pythons: dict[str, str], concurrency: int) -> tuple[Figures, Any]:
    async with running() as server:
        run = Run(Bench(server), contestants(pythons, concurrency), sizes)
        settings = await server.settings()
        await run.scenes(scenes)
        return run.figures, settings


def _print(figures: Figures, sizes: Sizes, settings: dict[str, str], about: list[str]) -> None:
    print(f"{_machine()}, Python {platform.python_version()}, PostgreSQL " + ", ".join(
        value if name == "server_version" else f"{name} {value}" for name, value in sorted(
            settings.items(), key=lambda setting: setting[0] != "server_version")
    ))  # fmt: skip
    print(
        f"{sizes.rounds} rounds, {sizes.hops:,} hops a drain, 300 bytes of payload, no-op handlers. {'; '.join(about)}"
    )
    print(f"\n{report.table(figures, sizes)}\n")
    if cores := report.cores(figures):
        print(f"{cores}\n")
    for who, why in figures.failed.items():
        print(f"- left out of {who}: {why}")
    print(f"\n{report.DIFFERENCES}")


def main() -> None:
    """Run, and print Markdown on stdout; progress goes to stderr."""
    arguments = _arguments()
    base = QUICK if arguments.quick else Sizes()
    given = {name: getattr(arguments, name, None) for name in asdict(base)}
    sizes = replace(base, **{name: value for name, value in given.items() if value is not None})
    scenes = arguments.only.split(",") if arguments.only else list(SCENES)
    if unknown := set(scenes) - set(SCENES):
        sys.exit(f"no scene is called {', '.join(sorted(unknown))}; there are {', '.join(SCENES)}")
    with_peers = arguments.peers if arguments.peers is not None else not arguments.quick
    pythons = prepare(arguments.cache, _say) if with_peers else {}
    about = [wanted[0] for name, wanted in requirements().items() if name in pythons] or ["without peers"]

    figures, settings = asyncio.run(_run(scenes, sizes, pythons, arguments.concurrency))
    _print(figures, sizes, settings, about)
    if arguments.json:
        found = {"machine": _machine(), "postgres": settings, "sizes": asdict(sizes), "peers": about}
        found |= {"figures": figures.of, "memory": figures.memory, "failed": figures.failed}
        found["targets"] = [asdict(verdict) for verdict in verdicts(figures)]
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    if arguments.plot:
        arguments.plot.parent.mkdir(parents=True, exist_ok=True)
        arguments.plot.write_text(plot.svg(figures))


if __name__ == "__main__":
    main()
