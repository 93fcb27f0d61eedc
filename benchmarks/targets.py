"""What tracekit must reach, and whether it did: each target in every round, then the median and the spread."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.contestants import BULK, CLAIM, DRAIN, DRAIN_TWO, LATENCY, SINGLE
from benchmarks.rounds import MEMORY, Figures

TRACEKIT = "tracekit"
FLAT_BYTES = 8.0
"""Bytes a hop that a worker's memory may grow by and still be called flat: 8 MB in a million."""

CORES_BUSY = 0.9
"""The share of the processors from which on they are the limit."""

FLOORS = {
    DRAIN: ("floor, recording",),
    DRAIN_TWO: ("floor, recording",),
    SINGLE: ("floor, bare",),
    BULK: ("floor, recording, JSON", "floor, recording, COPY"),
    LATENCY: ("floor, bare",),
}
"""Who is the floor of a scene: the best of these, round by round."""


@dataclass(frozen=True)
class Verdict:
    """One target. `text` says what was asked and what was found."""

    scene: str
    met: bool
    text: str


def best(figures: Figures, scene: str, names: Iterable[str], metric: str = "rate") -> list[float]:
    """The best of these in each round; none where none took part in all of them."""
    rows = [figures.of[scene][name][metric] for name in names if name in figures.of[scene]]
    most = max(map(len, rows), default=0)
    choose = max if metric == "rate" else min
    return [choose(values) for values in zip(*(row for row in rows if len(row) == most), strict=True)]


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Round by round."""
    return [a / b for a, b in zip(ours, theirs, strict=True)] if len(ours) == len(theirs) else []


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median, and from where to where."""
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f}–{max(values):,.{digits}f})"


def floor(figures: Figures, scene: str, metric: str = "rate") -> list[float]:
    """The scene's floor in each round."""
    return best(figures, scene, FLOORS.get(scene, ()), metric)


def verdicts(figures: Figures) -> list[Verdict]:
    """Of every target whose scenes were run."""
    return [*_throughput(figures), *_latency(figures), *_claims(figures), *_memory(figures)]


def _peers(figures: Figures, scene: str, family: str) -> list[str]:
    return [name for name in figures.of[scene] if name.startswith(family)]


def _ours(figures: Figures, scene: str, metric: str = "rate") -> list[float]:
    return best(figures, scene, [TRACEKIT], metric)


def _at_least(scene: str, least: float, of: str, found: list[float]) -> Iterable[Verdict]:
    if found:
        median = statistics.median(found)
        yield Verdict(scene, median >= least, f"≥ {least:g} × {of}: {spread(found)}{_by(least - median)}")


def _at_most(scene: str, most: float, of: str, found: list[float]) -> Iterable[Verdict]:
    if found:
        median = statistics.median(found)
        yield Verdict(scene, median <= most, f"≤ {most:g} × {of}: {spread(found)}{_by(median - most)}")


def _by(gap: float) -> str:
    return f", missed by {gap:.2f}" if gap > 0 else ", met"


def _throughput(figures: Figures) -> Iterable[Verdict]:
    one = _ours(figures, DRAIN)
    yield from _at_least(DRAIN, 0.6, "the recording floor", ratios(one, floor(figures, DRAIN)))
    pgqueuer = best(figures, DRAIN, _peers(figures, DRAIN, "pgqueuer"))
    yield from _at_least(DRAIN, 1.2, "pgqueuer's best", ratios(one, pgqueuer))
    off = best(figures, DRAIN, ["tracekit, tracing off"])
    yield from _at_least(DRAIN, 0.85, "tracing off", ratios(one, off))

    if found := ratios(_ours(figures, DRAIN_TWO), one):
        busy = [
            clients + server
            for clients, server in zip(
                _ours(figures, DRAIN_TWO, "clients"), _ours(figures, DRAIN_TWO, "server"), strict=True
            )
        ]
        cores = os.cpu_count() or 1
        median, kept = statistics.median(found), statistics.median(busy)
        text = f"> 1.3 × one process, or the cores' limit: {spread(found)}, {kept:.2f} of {cores} cores busy"
        met = median > 1.3 or kept >= CORES_BUSY * cores
        yield Verdict(DRAIN_TWO, met, text + (", met" if met else _by(1.3 - median)))

    single, floor_single = _ours(figures, SINGLE), floor(figures, SINGLE)
    yield from _at_least(SINGLE, 0.8, "the floor without NOTIFY", ratios(single, floor_single))
    bulk, floor_bulk = _ours(figures, BULK), floor(figures, BULK)
    yield from _at_least(BULK, 0.6, "the recording floor", ratios(bulk, floor_bulk))


def _latency(figures: Figures) -> Iterable[Verdict]:
    for metric, most in (("p50", 1.3), ("p99", 2.0)):
        ours = _ours(figures, LATENCY, metric)
        theirs = floor(figures, LATENCY, metric)
        yield from _at_most(LATENCY, most, f"the floor's {metric}", ratios(ours, theirs))
        for family in ("pgqueuer", "procrastinate"):
            peers = best(figures, LATENCY, _peers(figures, LATENCY, family), metric)
            yield from _at_most(LATENCY, 1.0, f"{family}'s {metric}", ratios(ours, peers))


def claim_ratios(figures: Figures, name: str, state: str) -> list[float]:
    """The rate of claims in a state against the same contestant's without a burden."""
    base = best(figures, CLAIM, [f"{name}|base"])
    return ratios(best(figures, CLAIM, [f"{name}|{state}"]), base)


def _claims(figures: Figures) -> Iterable[Verdict]:
    for key in figures.of[CLAIM]:
        name, _, state = key.partition("|")
        if name != TRACEKIT or state == "base" or not (found := claim_ratios(figures, name, state)):
            continue
        costs = [1 / ratio for ratio in found]
        if state == "parked":
            # "No measurable cost". A lucky round does not count: among many there is always one.
            met = statistics.median(costs) <= 1.05
            verdict = ", met" if met else _by(statistics.median(costs) - 1.05)
            yield Verdict(f"{CLAIM}, {state}", met, f"no measurable cost (× 1.05): {spread(costs)}{verdict}")
        else:
            yield from _at_most(f"{CLAIM}, {state}", 1.2, "the cost without", costs)


def growth(samples: Sequence[tuple[int, int]]) -> float:
    """Bytes a hop over the second half: the slope of the line that fits best."""
    half = samples[len(samples) // 2 :]
    return statistics.linear_regression([done for done, _ in half], [size for _, size in half]).slope


def _memory(figures: Figures) -> Iterable[Verdict]:
    if len(figures.memory) >= 4:
        found = growth(figures.memory)
        met = found <= FLAT_BYTES
        verdict = "met" if met else f"missed by {found - FLAT_BYTES:.1f}"
        yield Verdict(MEMORY, met, f"flat (≤ {FLAT_BYTES:g} bytes a hop): {found:.1f}, {verdict}")
