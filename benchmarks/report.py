"""The run as Markdown: one table of all that was measured, and what each contestant does not do."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.contestants import BULK, CLAIM, DRAIN, DRAIN_TWO, LATENCY, SINGLE
from benchmarks.reserving import CALLERS, UNRESERVED, WAYS
from benchmarks.rounds import MEMORY, RESERVE, Figures, Sizes
from benchmarks.targets import TRACEKIT, Verdict, best, claim_ratios, floor, growth, ratios, spread, verdicts

TITLES = {
    DRAIN: "drain, 1 process (jobs/s)",
    DRAIN_TWO: "drain, 2 processes (jobs/s)",
    SINGLE: "enqueue, one a transaction, 4 clients (jobs/s)",
    BULK: "enqueue in bulk, 1,000 a call (jobs/s)",
    LATENCY: "enqueue to handler start, idle worker",
    CLAIM: "claims (jobs/s)",
    MEMORY: "memory of a worker",
    RESERVE: "accounting for a model's call",
}

DIFFERENCES = Path(__file__).with_name("differences.md").read_text()
"""What each of them does not do, so that nobody is misled: from their documentation and source."""


def table(figures: Figures, sizes: Sizes) -> str:
    """Scene by contestant. A ratio is the median of the rounds' ratios, with the least and the greatest."""
    found = verdicts(figures)
    lines = [
        "| scene | contestant | median (min–max) | ÷ floor | tracekit ÷ it | target |",
        "|---|---|--:|--:|--:|---|",
    ]
    for scene in (DRAIN, DRAIN_TWO, SINGLE, BULK):
        lines += _rows(figures, scene, "rate", TITLES[scene], found)
    for metric in ("p50", "p99"):
        lines += _rows(figures, LATENCY, metric, f"{TITLES[LATENCY]}, {metric} (ms)", found)
    lines += _claim_rows(figures, sizes, found)
    if figures.memory:
        first, last = (f"{size / 1e6:.0f}" for size in (figures.memory[0][1], figures.memory[-1][1]))
        shown = f"{growth(figures.memory):.1f} bytes a hop in the second half; {first} → {last} MB"
        lines.append(_row(f"{TITLES[MEMORY]}, {sizes.memory:,} hops", TRACEKIT, shown, "", "", _targets(found, MEMORY)))
    lines += _reserve_rows(figures)
    return "\n".join(lines)


def cores(figures: Figures) -> str:
    """How many processors each drain kept busy: whether the machine was the limit."""
    lines = ["| scene | contestant | processors busy: clients + server |", "|---|---|--:|"]
    for scene in (DRAIN, DRAIN_TWO):
        for name, metrics in figures.of[scene].items():
            if metrics["clients"]:
                clients, server = (statistics.median(metrics[part]) for part in ("clients", "server"))
                lines.append(f"| {TITLES[scene]} | {name} | {clients:.2f} + {server:.2f} = {clients + server:.2f} |")
    return "\n".join(lines)


def _rows(figures: Figures, scene: str, metric: str, title: str, found: Sequence[Verdict]) -> list[str]:
    lowest, ours = floor(figures, scene, metric), best(figures, scene, [TRACEKIT], metric)
    lines = []
    for name, metrics in figures.of[scene].items():
        if values := metrics[metric]:
            against = ratios(values, lowest)
            versus = ratios(ours, values) if name != TRACEKIT else []
            targets = _targets(found, scene, metric) if name == TRACEKIT else ""
            lines.append(
                _row(
                    title,
                    name,
                    spread(values, 0 if metric == "rate" else 2),
                    spread(against) if against else "",
                    spread(versus) if versus else "",
                    targets,
                )
            )
    return lines


def _claim_rows(figures: Figures, sizes: Sizes, found: Sequence[Verdict]) -> list[str]:
    burdens = {state: f"{state}: {rows:,}" for state, (_, rows) in sizes.states().items()}
    lines = []
    for key, metrics in figures.of[CLAIM].items():
        name, _, state = key.partition("|")
        if values := metrics["rate"]:
            against = claim_ratios(figures, name, state) if state != "base" else []
            ours = best(figures, CLAIM, [f"{TRACEKIT}|{state}"])
            versus = ratios(ours, values) if name != TRACEKIT else []
            lines.append(
                _row(
                    f"{TITLES[CLAIM]}, {burdens[state]}",
                    name,
                    f"{spread(values, 0)}; server {statistics.median(metrics['server']):,.0f} µs a job",
                    f"own base: {spread(against)}" if against else "",
                    spread(versus) if versus else "",
                    _targets(found, f"{CLAIM}, {state}") if name == TRACEKIT else "",
                )
            )
    return lines


def _reserve_rows(figures: Figures) -> list[str]:
    lines = []
    for callers in CALLERS:
        base = figures.of[RESERVE][f"{UNRESERVED.name}|{callers}"]
        for way in WAYS:
            metrics = figures.of[RESERVE][f"{way.name}|{callers}"]
            if not metrics["rate"]:
                continue
            versus = ""
            if way is not UNRESERVED and len(metrics["rate"]) == len(base["rate"]):
                time, rate, cpu = (spread(ratios(metrics[name], base[name])) for name in ("latency", "rate", "cpu"))
                versus = f"{UNRESERVED.name}: time {time}, rate {rate}, processor {cpu}"
            title = f"{TITLES[RESERVE]}, {callers} at once (calls/s)"
            lines.append(_row(title, f"{TRACEKIT}, {way.name}", spread(metrics["rate"], 0), versus, "", ""))
    return lines


def _targets(found: Sequence[Verdict], scene: str, metric: str = "rate") -> str:
    return "<br>".join(
        f"{'✓' if verdict.met else '✗'} {verdict.text}"
        for verdict in found
        if verdict.scene == scene and (metric == "rate" or f"{metric}:" in verdict.text)
    )


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
