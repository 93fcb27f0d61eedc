"""Recording rules: what several alerts ask, and what is compared with what it was; under names of their own.

Named `level:metric:operations` (https://prometheus.io/docs/practices/rules/). Dashboards do not use them: theirs is a
choice of the job, and they are to work where these rules are not loaded.
"""

from __future__ import annotations

from dataclasses import dataclass

from tracekit.metrics import (
    BUDGET_AMOUNT,
    BUDGET_PERIOD_ELAPSED,
    BUDGET_SPENT,
    CALLS_PRICED_LATER,
    DATABASE_UP,
    DEAD_LETTERS,
    UNPRICED_CALLS,
)
from tracekit.promql import Vector, any_of, max_by, once, recorded, select, sum_by


@dataclass(frozen=True, slots=True)
class Recording:
    """One rule: what `expression` gives is recorded as the series `name`."""

    name: str
    expression: Vector

    @property
    def now(self) -> Vector:
        """What is recorded."""
        return recorded(self.name, self.expression.labels)

    def before(self, ago: str) -> Vector:
        """What was recorded that long ago, such as "1h"."""
        return recorded(self.name, self.expression.labels, before=ago)


DATABASE_SEEN = Recording("tracekit:tracekit_database_up:max", max_by(select(DATABASE_UP)))
"""1 while any process reaches PostgreSQL, and so while what is read from it is known."""

DEAD_LETTERS_BY_MODE = Recording("mode:tracekit_dead_letters:sum", sum_by(once(select(DEAD_LETTERS)), "mode"))
"""The depth of the DLQ. A mode of which nothing is dead has none."""

_UNPRICED = sum_by(once(select(UNPRICED_CALLS, synthetic="false")), "provider", "model")
_PRICED_LATER = sum_by(once(select(CALLS_PRICED_LATER, synthetic="false")), "provider", "model")

UNPRICED_BY_MODEL = Recording(
    "provider_model:tracekit_unpriced_calls:sum", _UNPRICED - any_of(_PRICED_LATER, _UNPRICED * 0)
)
"""Calls that have no price to this day. None that was made up (`synthetic`)."""

BUDGET_USED = Recording(
    "scope_subject_period_unit:tracekit_budget_used:ratio", once(select(BUDGET_SPENT)) / once(select(BUDGET_AMOUNT))
)
"""The share of a budget that is spent; 1 is all of it. A cap of tasks has none: each task has its own."""

BUDGET_PACE = Recording(
    "scope_subject_period_unit:tracekit_budget_pace:ratio", BUDGET_USED.now / once(select(BUDGET_PERIOD_ELAPSED))
)
"""How much faster a budget is spent than its day or week passes: at 1 it is used up exactly at the end, at 2 in half of
the time. What will have been spent at the end is the pace times the amount.
"""

RECORDINGS = (DATABASE_SEEN, DEAD_LETTERS_BY_MODE, UNPRICED_BY_MODEL, BUDGET_USED, BUDGET_PACE)
"""All of them, each after those that it is made of."""
