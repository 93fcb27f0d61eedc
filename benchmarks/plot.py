"""One SVG of bars on a logarithmic scale: a panel a scene, readable on light and on dark ground."""

from __future__ import annotations

import math
import statistics
from html import escape

from benchmarks.contestants import BULK, DRAIN, DRAIN_TWO, LATENCY, SINGLE
from benchmarks.report import TITLES
from benchmarks.rounds import Figures

_PANELS = (
    (DRAIN, "rate", TITLES[DRAIN]),
    (DRAIN_TWO, "rate", TITLES[DRAIN_TWO]),
    (SINGLE, "rate", TITLES[SINGLE]),
    (BULK, "rate", TITLES[BULK]),
    (LATENCY, "p50", f"{TITLES[LATENCY]}, p50 (ms, less is better)"),
    (LATENCY, "p99", f"{TITLES[LATENCY]}, p99 (ms, less is better)"),
)
_WIDTH, _LABELS, _VALUES = 860, 250, 90
_BAR, _GAP, _HEAD = 16, 6, 34

_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #24292f } .title { font-weight: 600; font-size: 13px }
.grid { stroke: #d0d7de } .tick { fill: #57606a; font-size: 10px }
.tracekit { fill: #1f6feb } .floor { fill: #8c959f } .peer { fill: #d4842f }
.spread { stroke: #24292f; stroke-width: 1.5 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .grid { stroke: #30363d } .tick { fill: #8b949e } .spread { stroke: #e6edf3 }
  .tracekit { fill: #4493f8 } .floor { fill: #6e7681 } .peer { fill: #e3a04f }
}
"""


def svg(figures: Figures) -> str:
    """Medians as bars, the rounds' spread as a line on each."""
    parts: list[str] = []
    top = 10.0
    for scene, metric, title in _PANELS:
        rows = {name: metrics[metric] for name, metrics in figures.of[scene].items() if metrics[metric]}
        if rows:
            parts.append(_panel(rows, title, top))
            top += _HEAD + len(rows) * (_BAR + _GAP) + 26
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top:.0f}" width="{_WIDTH}" role="img">'
        f"<title>tracekit, floors and peers</title><style>{_STYLE}</style>{''.join(parts)}</svg>\n"
    )


def _panel(rows: dict[str, list[float]], title: str, top: float) -> str:
    least = math.floor(math.log10(min(map(min, rows.values()))))
    most = math.ceil(math.log10(max(map(max, rows.values()))) + 1e-9)
    wide = _WIDTH - _LABELS - _VALUES

    def at(value: float) -> float:
        return _LABELS + wide * (math.log10(value) - least) / max(1, most - least)

    bottom = top + _HEAD + len(rows) * (_BAR + _GAP)
    parts = [f'<text class="title" x="0" y="{top + 14:.0f}">{escape(title)}</text>']
    for power in range(least, most + 1):
        x = at(10.0**power)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top + 24:.0f}" y2="{bottom:.0f}"/>')
        parts.append(
            f'<text class="tick" text-anchor="middle" x="{x:.1f}" y="{bottom + 12:.0f}">{_power(power)}</text>'
        )
    y = top + _HEAD
    for name, values in sorted(rows.items(), key=lambda row: -statistics.median(row[1])):
        median = statistics.median(values)
        kind = name.partition(",")[0]
        kind = kind if kind in ("tracekit", "floor") else "peer"
        middle = y + _BAR / 2
        shown = f"{median:,.0f}" if median >= 100 else f"{median:.3g}"
        parts.append(
            f'<text text-anchor="end" x="{_LABELS - 8}" y="{middle + 4:.1f}">{escape(name)}</text>'
            f'<rect class="{kind}" x="{_LABELS}" y="{y:.1f}" height="{_BAR}" width="{at(median) - _LABELS:.1f}"/>'
            f'<line class="spread" x1="{at(min(values)):.1f}" x2="{at(max(values)):.1f}" y1="{middle:.1f}" '
            f'y2="{middle:.1f}"/>'
            f'<text x="{max(at(median), at(max(values))) + 6:.1f}" y="{middle + 4:.1f}">{shown}</text>'
        )
        y += _BAR + _GAP
    return "".join(parts)


def _power(power: int) -> str:
    return f"{10**power:,}" if power >= 0 else f"{10.0**power:g}"
