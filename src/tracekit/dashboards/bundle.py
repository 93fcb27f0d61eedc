"""The five dashboards as files: JSON of Grafana's schema v1, the same bytes for the same code (D1)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as models

from tracekit.dashboards import NAMES, budget, fleet, people, queue, task

DASHBOARDS: Mapping[str, Callable[[], models.Dashboard]] = dict(
    zip(NAMES, (task.build, fleet.build, queue.build, budget.build, people.build), strict=True)
)
"""By the name of their file."""


def dashboard(name: str) -> dict[str, Any]:
    """One of `DASHBOARDS` as JSON data."""
    data: dict[str, Any] = json.loads(_text(DASHBOARDS[name]()))
    return data


def files() -> dict[str, str]:
    """The files by name."""
    return {f"{name}.json": _text(build()) for name, build in DASHBOARDS.items()}


def _text(built: models.Dashboard) -> str:
    return json.dumps(built, cls=JSONEncoder, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
