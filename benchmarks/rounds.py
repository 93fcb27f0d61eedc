"""The run: each scene in interleaved rounds, the order rotated from one to the next."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import psycopg

from benchmarks import reserving
from benchmarks.contestants import BULK, CLAIM, DRAIN, DRAIN_TWO, LATENCY, SINGLE, Contestant
from benchmarks.measure import Bench, Figure
from benchmarks.process import Failed

Item = TypeVar("Item")

MEMORY, RESERVE = "memory", "reserve"
SCENES = (DRAIN, DRAIN_TWO, SINGLE, BULK, LATENCY, CLAIM, MEMORY, RESERVE)

BASE = 10_000
"""Waiting jobs where claims are measured without a burden."""


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    hops: int = 40_000
    rounds: int = 3
    samples: int = 200
    claims: int = 5_000
    waiting: int = 1_000_000
    finished: int = 1_000_000
    aside: int = 100_000
    """Scheduled for later, or waiting in another mode."""
    parked: int = 10_000
    memory: int = 1_000_000
    calls: int = 1_200
    """Calls of models in one measurement of what their accounting costs."""
    longest: float = 10.0
    """Seconds for one measurement of claims: some peers would take minutes."""

    def states(self) -> dict[str, tuple[str, int]]:
        """Beside the base, by name: of which kind, and how many."""
        return {
            "base": ("waiting", BASE),
            "many waiting": ("waiting", self.waiting),
            "many finished": ("finished", self.finished),
            "scheduled for later": ("later", self.aside),
            "in another mode": ("elsewhere", self.aside),
            "parked": ("parked", self.parked),
        }


@dataclass
class Figures:
    """`of[scene][contestant][metric]` has one value a round. `failed` says who was left out of what, and why."""

    of: dict[str, dict[str, dict[str, list[float]]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    )
    failed: dict[str, str] = field(default_factory=dict)
    memory: list[tuple[int, int]] = field(default_factory=list)

    def add(self, scene: str, contestant: str, figure: Figure) -> None:
        for metric, value in figure.items():
            self.of[scene][contestant][metric].append(value)


class Run:
    """Everything that was asked for, into `figures`."""

    def __init__(self, bench: Bench, contestants: Sequence[Contestant], sizes: Sizes) -> None:
        self._bench = bench
        self._contestants = contestants
        self._sizes = sizes
        self._began = time.monotonic()
        self.figures = Figures()

    async def scenes(self, names: Sequence[str]) -> None:
        """One scene after another."""
        sizes, bench = self._sizes, self._bench
        if DRAIN in names:
            await self._rounds(DRAIN, lambda c: bench.drain(c, sizes.hops, 1))
        if DRAIN_TWO in names:
            await self._rounds(DRAIN_TWO, lambda c: bench.drain(c, sizes.hops, 2))
        if SINGLE in names:
            await self._rounds(SINGLE, lambda c: bench.enqueue(c, max(400, sizes.hops // 8), "single"))
        if BULK in names:
            await self._rounds(BULK, lambda c: bench.enqueue(c, sizes.hops, "bulk"))
        if LATENCY in names:
            await self._rounds(LATENCY, lambda c: bench.latency(c, sizes.samples))
        if CLAIM in names:
            await self._claims()
        if MEMORY in names:
            await self._memory()
        if RESERVE in names:
            await self._reserving()

    async def _rounds(self, scene: str, measure: Callable[[Contestant], Awaitable[Figure]]) -> None:
        taking_part = [contestant for contestant in self._contestants if scene in contestant.scenes]
        for number in range(self._sizes.rounds):
            for contestant in _rotated(taking_part, number):
                await self._one(scene, contestant.name, contestant.name, number, measure(contestant))

    async def _one(self, scene: str, name: str, who: str, number: int, measuring: Awaitable[Figure]) -> None:
        """A contestant that fails is left out of the scene's ratios, and said to be."""
        try:
            figure = await measuring
        except (Failed, TimeoutError, psycopg.OperationalError) as error:
            self.figures.failed[f"{scene}: {who}"] = f"{type(error).__name__}: {error}"
            self._say(f"{scene}: {who} failed: {error}")
            figure = {}
        else:
            shown = ", ".join(f"{metric} {value:,.1f}" for metric, value in figure.items())
            self._say(f"{scene}, round {number + 1}: {name}: {shown}")
        self.figures.add(scene, who, figure)

    # --- claims: databases that are filled once and topped up --------------------------------------------------------

    async def _claims(self) -> None:
        places: list[tuple[Contestant, str, str]] = []
        for contestant in self._contestants:
            if CLAIM not in contestant.scenes:
                continue
            for state, (kind, rows) in self._sizes.states().items():
                if kind in contestant.family.fills:
                    database = f"claim_{len(places)}"
                    self._say(f"claim: {contestant.name}: filling {rows:,} ({state})")
                    await self._bench.fresh(contestant, database)
                    await self._bench.fill(contestant, database, kind, rows)
                    if kind != "waiting":
                        await self._bench.fill(contestant, database, "waiting", BASE)
                    places.append((contestant, state, database))
        for number in range(self._sizes.rounds):
            for contestant, state, database in _rotated(places, number):
                await self._one(
                    CLAIM,
                    f"{contestant.name}, {state}",
                    f"{contestant.name}|{state}",
                    number,
                    self._claim(contestant, database),
                )
        for _, _, database in places:
            await self._bench.server.drop(database)

    async def _claim(self, contestant: Contestant, database: str) -> Figure:
        sizes = self._sizes
        figure, taken = await self._bench.claims(contestant, database, sizes.claims, sizes.longest)
        await self._bench.fill(contestant, database, "waiting", taken)
        return figure

    async def _memory(self) -> None:
        for contestant in self._contestants:
            if contestant.name == "tracekit":
                self._say(f"memory: {contestant.name}: {self._sizes.memory:,} hops")
                self.figures.memory = await self._bench.memory(contestant, self._sizes.memory)

    async def _reserving(self) -> None:
        server, calls = self._bench.server, self._sizes.calls
        await reserving.prepare(server)
        for number in range(self._sizes.rounds):
            for callers in reserving.CALLERS:
                for way in _rotated(reserving.WAYS, number):
                    who = f"{way.name}|{callers}"
                    measuring = reserving.measure(server, way, callers, calls)
                    await self._one(RESERVE, f"{way.name}, {callers} callers", who, number, measuring)

    def _say(self, what: str) -> None:
        print(f"[{time.monotonic() - self._began:6.0f} s] {what}", file=sys.stderr, flush=True)


def _rotated(items: Sequence[Item], by: int) -> list[Item]:
    by = by % len(items) if items else 0
    return [*items[by:], *items[:by]]
