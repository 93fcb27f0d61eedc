"""PromQL, put together from the catalogue: an expression cannot name a metric or a label that tracekit does not emit.

    sum_by(rate(select(ATTEMPTS, outcome="done"), "5m"), "mode") > 0.1
    sum by (mode) (rate(tracekit_attempts_total{outcome="done"}[5m])) > 0.1

Only what dashboards and alerts use of the language is here (https://prometheus.io/docs/prometheus/latest/querying/).
Faults of an expression (a label that the metric lacks, a rate of a gauge) are ValueErrors where it is written.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from tracekit.metrics import Metric

SCRAPED = ("job", "instance")
"""Labels that Prometheus adds to every series of a scrape: one of tracekit's processes each."""

UP = Metric("up", "gauge", "1 if Prometheus's last scrape of a target succeeded, else 0.")
"""Prometheus's own, and so not of the catalogue."""

_SERIES = {"bucket": ("le",), "sum": (), "count": ()}
_SETS = ("and", "or", "unless")
_CHAINED = ("+", "-", "*", *_SETS)


@dataclass(frozen=True, slots=True)
class Match:
    """What a label has to be, where that is not one value."""

    operator: Literal["=", "=~"]
    value: str


def matches(pattern: str) -> Match:
    """A value that the whole RE2 pattern fits; in Grafana a variable: `matches("$mode")`."""
    return Match("=~", pattern)


@dataclass(frozen=True, slots=True)
class Vector:
    """An instant vector. `str()` is its PromQL; + - * / and > >= < <= combine it with another or with a number."""

    text: str
    labels: frozenset[str]
    """The labels that its series may have."""
    operator: str = ""
    """The outermost operator, "" where it needs no parentheses as an operand."""

    def __str__(self) -> str:
        return self.text

    def __add__(self, other: Operand) -> Vector:
        return binary(self, "+", other)

    def __sub__(self, other: Operand) -> Vector:
        return binary(self, "-", other)

    def __mul__(self, other: Operand) -> Vector:
        return binary(self, "*", other)

    def __truediv__(self, other: Operand) -> Vector:
        return binary(self, "/", other)

    def __gt__(self, other: Operand) -> Vector:
        return binary(self, ">", other)

    def __ge__(self, other: Operand) -> Vector:
        return binary(self, ">=", other)

    def __lt__(self, other: Operand) -> Vector:
        return binary(self, "<", other)

    def __le__(self, other: Operand) -> Vector:
        return binary(self, "<=", other)

    def equals(self, other: Operand) -> Vector:
        """The series whose value is that."""
        return binary(self, "==", other)


@dataclass(frozen=True, slots=True)
class Selector(Vector):
    """The series of one metric, as they were scraped: what ranges are taken of."""

    metric: Metric = UP
    asked: frozenset[str] = frozenset()
    """Labels that it asks for with =."""


Operand = Vector | float


def select(
    metric: Metric, series: Literal["", "bucket", "sum", "count"] = "", /, **labels: str | Match | tuple[str, ...]
) -> Selector:
    """The series of a metric whose labels are as given: a value, one of several, or a `Match`. A histogram has three
    series: `bucket` (with the label `le`), `sum` and `count`.
    """
    if (metric.type == "histogram") != bool(series):
        raise ValueError(f"{metric.name} is a {metric.type}: {'name' if not series else 'it has no'} series of it")
    known = frozenset((*metric.labels, *SCRAPED, *_SERIES.get(series, ())))
    _held(labels, known, metric.name)
    matchers, asked = [], set()
    for name, wanted in labels.items():
        match wanted:
            case str():
                wanted = Match("=", wanted)
            case tuple():
                wanted = Match("=~", "|".join(wanted))
        if wanted.operator == "=":
            asked.add(name)
        value = wanted.value.replace("\\", "\\\\").replace('"', '\\"')
        matchers.append(f'{name}{wanted.operator}"{value}"')
    name = metric.name + (f"_{series}" if series else "")
    return Selector(name + (f"{{{','.join(matchers)}}}" if matchers else ""), known, "", metric, frozenset(asked))


def recorded(name: str, labels: frozenset[str], before: str = "") -> Vector:
    """The series of a recording rule, which have these labels; as they were `before`, such as "1h" ago."""
    return Vector(f"{name} offset {before}" if before else name, labels)


# --- over time --------------------------------------------------------------------------------------------------------


def rate(selector: Selector, window: str) -> Vector:
    """What a counter grew by a second in the window, such as "5m" or `$__rate_interval`."""
    return _counted("rate", selector, window)


def increase(selector: Selector, window: str) -> Vector:
    """What a counter grew by in the window, extrapolated to its borders. A series that begins inside the window counts
    from its first sample on: what it began with is not seen.
    """
    return _counted("increase", selector, window)


def quantile(q: float, metric: Metric, window: str, *by: str, **labels: str | Match | tuple[str, ...]) -> Vector:
    """The q-quantile of a histogram in the window, for each value of the labels `by`."""
    buckets = rate(select(metric, "bucket", **labels), window)
    return Vector(f"histogram_quantile({q:g}, {sum_by(buckets, 'le', *by)})", frozenset(by))


# --- across series ----------------------------------------------------------------------------------------------------


def sum_by(vector: Vector, *by: str) -> Vector:
    """The sums, for each value of the labels `by`."""
    return _aggregate("sum", vector, by)


def max_by(vector: Vector, *by: str) -> Vector:
    """The greatest of each."""
    return _aggregate("max", vector, by)


def min_by(vector: Vector, *by: str) -> Vector:
    """The least of each."""
    return _aggregate("min", vector, by)


def once(vector: Vector) -> Vector:
    """Of what every process shows alike, one: metrics of the source `database` are the same in all of them, and a sum
    would count them as often as there are processes.
    """
    return max_by(vector, *sorted(vector.labels - {*SCRAPED}))


def absent(selector: Selector) -> Vector:
    """1 where the selector finds nothing, with the labels that it asks for with =."""
    return Vector(f"absent({selector})", selector.asked)


# --- between two ------------------------------------------------------------------------------------------------------


def binary(left: Operand, operator: str, right: Operand, *, on: tuple[str, ...] | None = None) -> Vector:
    """`left operator right`. Series are paired by all their labels, or by those of `on`."""
    vectors = [side for side in (left, right) if isinstance(side, Vector)]
    if not vectors or (len(vectors) == 1 and (on is not None or operator in _SETS)):
        raise ValueError(f"{operator} between {left} and {right}")
    words, labels = operator, vectors[0].labels
    if operator == "or":
        labels |= vectors[-1].labels
    if on is not None:
        for vector in vectors:
            _held(on, vector.labels, vector.text)
        words += f" on ({', '.join(on)})"
        if operator not in _SETS:
            labels = frozenset(on)
    return Vector(f"{_operand(left, chain=operator)} {words} {_operand(right)}", labels, operator)


def all_of(first: Vector, second: Vector, *, on: tuple[str, ...] | None = None) -> Vector:
    """`and`: of the first, those that have a partner in the second."""
    return binary(first, "and", second, on=on)


def any_of(first: Vector, second: Vector, *, on: tuple[str, ...] | None = None) -> Vector:
    """`or`: the first, and of the second those that have no partner in it."""
    return binary(first, "or", second, on=on)


def unless(first: Vector, second: Vector, *, on: tuple[str, ...] | None = None) -> Vector:
    """`unless`: of the first, those that have no partner in the second."""
    return binary(first, "unless", second, on=on)


def _operand(side: Operand, *, chain: str = "") -> str:
    """An operand, in parentheses unless it is the left of a chain like a + b + c."""
    if not isinstance(side, Vector):
        return f"{side:g}"
    return side.text if not side.operator or side.operator == chain in _CHAINED else f"({side})"


def _counted(function: str, selector: Selector, window: str) -> Vector:
    if selector.metric.type == "gauge":
        raise ValueError(f"{selector.metric.name} is a gauge: {function} is of counters")
    return Vector(f"{function}({selector}[{window}])", selector.labels)


def _aggregate(what: str, vector: Vector, by: tuple[str, ...]) -> Vector:
    _held(by, vector.labels, vector.text)
    grouping = f" by ({', '.join(by)}) " if by else ""
    return Vector(f"{what}{grouping}({vector})", frozenset(by))


def _held(names: Iterable[str], labels: frozenset[str], where: str) -> None:
    """Raise for a name that is not among the labels."""
    for name in sorted(set(names) - labels):
        raise ValueError(f"{where} has no label {name!r}; it has {', '.join(sorted(labels)) or 'none'}")
