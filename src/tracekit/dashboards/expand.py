"""A query as the data source gets it: variables and macros replaced, as Grafana does it.

For the terminal's preview, and for the tests, which run every query. Only what the dashboards use is here, and what
else there is in a query raises: so no query is run that Grafana would read otherwise.
https://grafana.com/docs/grafana/latest/dashboards/variables/variable-syntax/,
https://grafana.com/docs/grafana/latest/datasources/postgres/
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Self

_VARIABLE = re.compile(r"\$\{(?P<braced>\w+)(?::(?P<format>\w+))?\}|\$(?P<plain>\w+)")
_MACRO = re.compile(r"\$__(?P<name>\w+)\((?P<argument>[^)]*)\)")  # as Grafana: up to the first parenthesis
_REGEX = re.compile(r"([\\^$.*+?()\[\]{}|/-])")
_RE2 = re.compile(r"([$^*{}\[\]'+?.()|\\])")


class ExpansionError(ValueError):
    """A query has a variable, a format or a macro that is not known."""


@dataclass(frozen=True, slots=True)
class Values:
    """What a variable has: values that are escaped as the format says, or one text that is taken as it is."""

    values: Sequence[str] = ()
    raw: str | None = None
    texts: Sequence[str] = ()
    """What a person is shown; empty: the values."""


@dataclass(frozen=True, slots=True)
class Scope:
    """The time range, and the variables."""

    begins: datetime
    ends: datetime
    variables: Mapping[str, Values] = field(default_factory=dict)
    points: int = 120
    """How many points a graph is wide."""
    scrape: float = 15.0
    """Seconds between scrapes."""
    zone: str = "UTC"

    def having(self, **variables: Values) -> Self:
        """The same with more variables."""
        return replace(self, variables={**self.variables, **variables})

    @property
    def range(self) -> float:
        """Seconds of the time range."""
        return (self.ends - self.begins).total_seconds()

    @property
    def step(self) -> float:
        """Seconds between two points, not less than between two scrapes."""
        return max(self.range / self.points, self.scrape)

    @property
    def rate_interval(self) -> float:
        """Seconds that Grafana's `$__rate_interval` is: four scrapes, or a point and a scrape."""
        return max(self.step + self.scrape, 4 * self.scrape)


def sql(query: str, scope: Scope) -> str:
    """A query of the PostgreSQL data source. Variables must name their format: the default quotes or not, by number."""
    return _MACRO.sub(lambda macro: _macro(macro, scope), _variables(query, scope, default=None))


def promql(query: str, scope: Scope) -> str:
    """A query of Prometheus, where a variable is a pattern."""
    return _variables(query, scope, default="promql")


def text(query: str, scope: Scope) -> str:
    """A query of Tempo or Loki, or a title, where a variable is its value."""
    return _variables(query, scope, default="glob")


def _variables(query: str, scope: Scope, *, default: str | None) -> str:
    def value(found: re.Match[str]) -> str:
        name = found["braced"] or found["plain"]
        if not found["braced"] and query[found.end() : found.end() + 1] == "(":
            return found[0]
        if (built_in := _built_in(name, scope)) is not None:
            return built_in
        if name not in scope.variables:
            raise ExpansionError(f"there is no variable {name} in {query!r}")
        format = found["format"] or default
        if format is None:
            raise ExpansionError(f"the variable {name} has no format in {query!r}")
        return _formatted(scope.variables[name], format)

    return _VARIABLE.sub(value, query)


def _built_in(name: str, scope: Scope) -> str | None:
    found: dict[str, Callable[[], str]] = {
        "__interval": lambda: duration(scope.step),
        "__rate_interval": lambda: duration(scope.rate_interval),
        "__range": lambda: duration(scope.range),
        "__timezone": lambda: scope.zone,
    }
    return found[name]() if name in found else None


def _formatted(values: Values, format: str) -> str:
    if values.raw is not None and format != "text":
        return values.raw
    match format:
        case "regex" | "promql":
            # In a string of PromQL a backslash is two.
            escaped = [
                _REGEX.sub(r"\\\1", value) if format == "regex" else _RE2.sub(r"\\\\\1", value)
                for value in values.values
            ]
            return escaped[0] if len(escaped) == 1 else f"({'|'.join(escaped)})"
        case "sqlstring":
            return ",".join("'" + value.replace("'", "''") + "'" for value in values.values)
        case "text":
            return " + ".join(values.texts or values.values)
        case "glob":
            return values.values[0] if len(values.values) == 1 else f"{{{','.join(values.values)}}}"
        case _:
            raise ExpansionError(f"the format {format} is not known")


def _macro(found: re.Match[str], scope: Scope) -> str:
    match found["name"]:
        case "timeFilter":
            return f"{found['argument']} BETWEEN '{scope.begins.isoformat()}' AND '{scope.ends.isoformat()}'"
        case "timeFrom":
            return f"'{scope.begins.isoformat()}'"
        case "timeTo":
            return f"'{scope.ends.isoformat()}'"
        case name:
            raise ExpansionError(f"the macro $__{name} is not known")


def duration(seconds: float) -> str:
    """As Prometheus takes it."""
    return f"{max(1, round(seconds * 1000))}ms"
