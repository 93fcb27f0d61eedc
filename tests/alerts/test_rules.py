"""The rules (D5): each fires when it should and stays silent in the nearest state in which it should not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.alerts.cases import CASES
from tests.alerts.mutants import mutants
from tests.alerts.promtool import NAMED, promtool, rules_of


@pytest.mark.parametrize("alert", NAMED)
def test_d5_it_fires_when_it_should_and_is_silent_when_not(alert: str, tmp_path: Path) -> None:
    cases = [case for case in CASES if case.alert == alert]
    assert {bool(case.fires) for case in cases} == {True, False}, "each has cases both ways"
    wrong = promtool(tmp_path, rules_of(alert), [case.test() for case in cases])
    assert not wrong, wrong


@pytest.mark.parametrize("alert", NAMED)
def test_d5_a_rule_that_is_a_little_wrong_is_noticed(alert: str, tmp_path: Path) -> None:
    """Each in one place: a threshold, a matcher, a window, a clause, a `for`. Those that are recorded first too."""
    made = rules_of(alert)
    *_, alerting = made["groups"]
    [rule] = alerting["rules"]
    recorded: dict[str, dict[str, Any]] = {}
    wrong: dict[str, dict[str, Any]] = {}
    told: dict[str, str] = {}

    def add(what: str, rule: dict[str, Any]) -> str:
        name = f"wrong {len(told)}"
        wrong[name] = {**rule, "alert": name}
        told[name] = what
        return name

    for what, mutant in mutants(rule):
        add(what, mutant)
    for one in _recordings(made, rule["expr"]):
        for number, (what, mutant) in enumerate(mutants(one)):
            record = f"{one['record']}:{number}"
            name = add(f"{one['record']}: {what}", {**rule, "expr": rule["expr"].replace(one["record"], record)})
            recorded[name] = {**mutant, "record": record}
    for case in [case for case in CASES if case.alert == alert]:
        # What one case has noticed the others need not look at.
        left = {"name": "wrong", "rules": [*recorded.values(), *wrong.values()]}
        said = promtool(tmp_path, {"groups": [*made["groups"][:-1], left]}, [case.test(list(wrong))]) if wrong else ""
        for name in re.findall(r"alertname: (wrong \d+),", said):
            del wrong[name]
            recorded.pop(name, None)
    passed = [told[name] for name in wrong]
    assert not passed, "no case notices:\n" + "\n".join(passed)


def _recordings(made: dict[str, Any], expr: str) -> list[dict[str, Any]]:
    """The recording rules that an expression names."""
    return [one for one in made["groups"][0]["rules"] if one["record"] in expr]
