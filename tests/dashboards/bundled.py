"""What is in the generated files: panels, and every query of them, by where it stands."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.processes import ROOT

DIRECTORY = ROOT / "dashboards"
FILES = sorted(path.name for path in DIRECTORY.glob("*.json"))


@dataclass(frozen=True)
class Query:
    """A query, and the place that it stands in: `task: Events [A]`."""

    dashboard: str
    place: str
    target: dict[str, Any]
    panel: dict[str, Any]
    """Empty for a variable's or an annotation's."""

    @property
    def source(self) -> str:
        """The plugin that is asked."""
        plugin: str = self.target["datasource"]["type"]
        return plugin

    def __str__(self) -> str:
        return f"{self.dashboard}: {self.place}"


def load(name: str) -> dict[str, Any]:
    """A file of the bundle."""
    data: dict[str, Any] = json.loads((DIRECTORY / name).read_text())
    return data


def panels(data: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All panels that show something, also those in collapsed rows."""
    for panel in data["panels"]:
        if panel["type"] == "row":
            yield from panel.get("panels", [])
        else:
            yield panel


def variables(data: dict[str, Any]) -> list[dict[str, Any]]:
    """The variables that choose no data source."""
    return [one for one in data["templating"]["list"] if one["type"] != "datasource"]


def queries(directory: Path = DIRECTORY) -> list[Query]:
    """Every query of every panel, variable and annotation of the files."""
    found = []
    for path in sorted(directory.glob("*.json")):
        data = json.loads(path.read_text())
        for panel in panels(data):
            found += [
                Query(path.stem, f"{panel['title']} [{target['refId']}]", target, panel) for target in panel["targets"]
            ]
        for one in variables(data):
            if one["type"] == "query" and isinstance(one["query"], str):
                target = {"datasource": one["datasource"], "rawSql": one["query"], "format": "table"}
                found.append(Query(path.stem, f"the variable {one['name']}", target, {}))
            elif one["type"] == "query":
                target = {"datasource": one["datasource"], "variable": one["query"]["query"]}
                found.append(Query(path.stem, f"the variable {one['name']}", target, {}))
        for one in data["annotations"]["list"]:
            found.append(Query(path.stem, f"the annotation {one['name']}", one["target"], {}))
    return found
