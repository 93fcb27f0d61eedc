"""Rules that are a little wrong: each has to be noticed by a case, or what it changes has no reason to be there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_SWAPPED = {">": ">=", ">=": ">", "<": "<=", "<=": "<", "==": "!="}
_OTHER = {"0": ["1"], "1": ["0", "2"]}
_WINDOW = {"1h": ["30m", "2h"], "15m": ["7m", "30m"]}
_AGGREGATED = {"max": "sum", "min": "sum", "sum": "max"}


def expressions(expr: str) -> Iterator[str]:
    """Expressions that differ from `expr` in one place: where that means something."""
    for place, mutant in _changed(expr):
        if not any(begin < place < end for begin, end in _zeros(expr)):
            yield mutant


def _changed(expr: str) -> Iterator[tuple[int, str]]:
    """Each with where it differs."""
    for found in re.finditer(r" (>=|<=|==|>|<) (\d[\d.]*)", expr):
        operator, number = found.groups()
        yield found.start(1), _put(expr, found, 1, _SWAPPED[operator])
        for other in _OTHER.get(number, [f"{float(number) / 2:g}", f"{float(number) * 2:g}"]):
            yield found.start(2), _put(expr, found, 2, other)
    for found in re.finditer(r"\{([^}]*)\}", expr):
        matchers = re.findall(r'\w+(?:=~|!~|!=|=)"[^"]*"', found[1])
        for matcher in matchers:
            left = ",".join(one for one in matchers if one != matcher)
            yield found.start(0), _put(expr, found, 0, f"{{{left}}}" if left else "")
            for alternative in re.findall(r"[\w-]+", matcher.split("=~")[1]) if "=~" in matcher else ():
                less = re.sub(rf"\b{alternative}\b\|?", "", matcher).replace('|"', '"')
                yield found.start(0), _put(expr, found, 0, "{" + found[1].replace(matcher, less) + "}")
    for found in re.finditer(r"(?:\[|offset )(\d+[mh])", expr):
        for other in _WINDOW[found[1]]:
            yield found.start(1), _put(expr, found, 1, other)
    for found in re.finditer(r"\b(max|min|sum)(?=\(| by)", expr):
        # Whether any process reaches the database differs between them; what they read there does not.
        of_processes = expr[found.end() :].startswith("(tracekit_database_up")
        yield found.start(1), _put(expr, found, 1, "min" if of_processes else _AGGREGATED[found[1]])
    for found in re.finditer(r"by \(([^)]*)\)", expr):
        names = found[1].split(", ")
        selector = re.match(r" \(\w+(\{[^}]*\})?", expr[found.end() :])
        # A label that is asked for by value is one value. Of a long list two will do: each costs every case once more.
        free = [name for name in names if not (selector and f'{name}="' in (selector[1] or ""))]
        for name in free if len(free) <= 4 else (free[0], free[-1]):
            yield found.start(1), _put(expr, found, 1, ", ".join(one for one in names if one != name))
    for found in re.finditer(r" (and|or|unless)( on \([^)]*\))? ", expr):
        yield found.start(), expr[: found.start()] + expr[_end(expr, found.end()) :]
    for old, new in ((" - ", " + "), (" / ", " * "), (" * 0", " * 1")):
        for found in re.finditer(re.escape(old), expr):
            yield found.start(0), _put(expr, found, 0, new)


def mutants(rule: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rules that differ from `rule` in one place, each with what differs."""
    for expr in dict.fromkeys(expressions(rule["expr"])):
        yield expr, {**rule, "expr": expr}
    for clause in ("for", "keep_firing_for"):
        if clause in rule:
            minutes = int(rule[clause].removesuffix("m"))
            for other in (minutes - 1, minutes + 1):
                yield f"{clause}: {other}m", {**rule, clause: f"{other}m"}


def _put(expr: str, found: re.Match[str], group: int, text: str) -> str:
    return expr[: found.start(group)] + text + expr[found.end(group) :]


def _end(expr: str, start: int) -> int:
    """Where the operand that begins at `start` ends."""
    depth = 0
    for place in range(start, len(expr)):
        depth += {"(": 1, ")": -1}.get(expr[place], 0)
        if depth < 0:
            return place
        if depth == 0 and re.match(r" (and|or|unless|>|<|=|!)", expr[place + 1 :]):
            return place + 1
    return len(expr)


def _zeros(expr: str) -> Iterator[tuple[int, int]]:
    """Where an operand is multiplied by 0: of it only matters that it is there."""
    for found in re.finditer(r" \* 0", expr):
        depth, place = 0, found.start()
        while place > 0 and depth >= 0:
            place -= 1
            depth += {")": 1, "(": -1}.get(expr[place], 0)
        yield place, found.start()
