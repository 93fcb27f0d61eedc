"""What a budget is called, and what a call that has no room in one is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Literal, get_args

from tracekit.cost.money import dollars
from tracekit.cost.periods import Period
from tracekit.errors import TracekitError

Scope = Literal["total", "mode", "persona", "requester", "model", "task"]
Unit = Literal["usd", "tokens", "requests"]
Policy = Literal["downgrade", "park", "refuse"]
"""What becomes of a call that has no room, the strictest last."""

UNITS: tuple[Unit, ...] = get_args(Unit)
POLICIES: tuple[Policy, ...] = get_args(Policy)

NOT_ASKED = " was not asked: "
"""Between the model and why: what follows is of money."""

_THIS: dict[Period, str] = {"day": "today", "week": "this week"}


@dataclass(frozen=True, slots=True)
class Limit:
    """Which budget: of what, for how long, in which unit. Its amount changes, its name does not."""

    scope: Scope
    subject: str
    """Which mode, persona, requester or model; empty for `total` and `task`."""
    period: Period
    unit: Unit

    @property
    def name(self) -> str:
        """`total/day/usd`, `model m-1/week/tokens`."""
        return f"{self.scope}{f' {self.subject}' if self.subject else ''}/{self.period}/{self.unit}"

    @property
    def words(self) -> str:
        """`the total budget for today`, `the budget of the model m-1 for this week`, `the cap of a task`."""
        if self.scope == "task":
            return "the cap of a task"
        whose = "the total budget" if self.scope == "total" else f"the budget of the {self.scope} {self.subject}"
        return f"{whose} for {_THIS[self.period]}"


def shown(unit: Unit, amount: Decimal) -> str:
    """An amount for people: `$4.98`, `$0.000012`, `12,000 tokens`, `1 request`."""
    if unit == "usd":
        return dollars(amount)
    number = f"{amount.normalize():,f}"
    return f"{number} {unit[:-1] if amount == 1 else unit}"


def about(unit: Unit, amount: Decimal) -> str:
    """The same of what was worked out: tokens and requests are whole."""
    return shown(unit, amount if unit == "usd" else amount.quantize(Decimal(1)))


@dataclass(frozen=True, slots=True)
class Exceeded:
    """A budget in which a call has no room."""

    limit: Limit
    amount: Decimal
    """With what urgent tasks have beyond it, where the task is one."""
    spent: Decimal
    reserved: Decimal
    """By calls that are under way."""
    wanted: Decimal | None
    """The most that the call may take. None: its price is not known, so it can have no room in a budget of dollars."""
    policy: Policy
    ends: datetime
    """When the budget begins anew."""
    counter: int

    @property
    def words(self) -> str:
        """Why there is no room, in a sentence's part."""
        unit = self.limit.unit
        of = f"{self.limit.words} is {shown(unit, self.amount)}"
        if self.wanted is None:
            return f"{of}, and what this call would cost nobody knows"
        taken = f"{shown(unit, self.spent)} spent"
        if self.reserved:
            taken += f" and {shown(unit, self.reserved)} reserved by calls under way"
        return f"{of}, with {taken}, and this call may take {shown(unit, self.wanted)}"


class OverBudget(TracekitError):
    """A call that was not made, since budgets have no room for it. Nothing was spent."""

    def __init__(
        self,
        exceeded: Sequence[Exceeded],
        *,
        provider: str,
        model: str,
        usd: Decimal | None,
        tokens: int,
        requests: int,
    ) -> None:
        self.exceeded = tuple(exceeded)
        self.provider = provider
        self.model = model
        self.usd = usd
        self.tokens = tokens
        self.requests = requests
        super().__init__(
            f"the model {model}{NOT_ASKED}" + "; ".join(one.words for one in self.exceeded),
            hint="`tracekit budget show` says what is left; an operator may raise a budget",
        )

    @property
    def policy(self) -> Policy:
        """The strictest of the budgets that have no room."""
        return max((one.policy for one in self.exceeded), key=POLICIES.index)

    @property
    def begins_anew(self) -> datetime:
        """When all of these budgets have begun anew."""
        return max(one.ends for one in self.exceeded)
