"""What the modes hand each other: a plan, its approval, what was done, and what came of it.

A plan is what a person is shown and what is carried out: its hash stands for it, and a plan that was changed after its
approval is another plan.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from tracekit.envelope import DataTier, Name, Text
from tracekit.queue.model import Json

MOST_STEPS = 20
"""Steps of one plan. A person must be able to read all of them before they say yes."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Step(_Strict):
    """One thing to do to the world."""

    capability: Annotated[Text, Field(min_length=1, max_length=100, pattern=r"^[a-z0-9_]+(\.[a-z0-9_]+)*$")]
    arguments: dict[str, Json] = {}
    """Of the capability's own type; checked by the planner, the guardian and the executor."""
    expect: dict[str, Json] = {}
    """What must be seen of each thing that the step touched, such as `{"state": "on"}`. A list: any of these."""
    destructive: bool = False
    """Raises what the capability says of itself, never lowers it (P4)."""
    optional: bool = False
    """The plan goes on without it where it cannot be done: it only adds to what is known."""
    data_tier: Annotated[DataTier, Field(strict=False)] = DataTier.INTERNAL


class Plan(_Strict):
    """What is going to be done, in this order."""

    steps: Annotated[tuple[Step, ...], Field(min_length=1, max_length=MOST_STEPS, strict=False)]
    persona: Name | None = None
    reason: Annotated[Text, Field(max_length=500)] = ""
    """Why this plan: the rule that it comes from."""

    @property
    def destructive(self) -> bool:
        """Whether the planner holds any step to be destructive. The capabilities may say so where this does not."""
        return any(step.destructive for step in self.steps)

    @property
    def restricted(self) -> bool:
        """Whether any step touches restricted data."""
        return any(step.data_tier is DataTier.RESTRICTED for step in self.steps)


def plan_hash(plan: Plan) -> str:
    """SHA-256 of the plan as canonical JSON, in hex: equal for equal plans, different for any change."""
    text = json.dumps(plan.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


class Alert(BaseModel):
    """An alert as Alertmanager describes it, as far as it was passed on."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    fingerprint: str = ""
    status: str = "firing"
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    startsAt: str = ""
    endsAt: str | None = None
    generatorURL: str = ""


class PlanRequest(BaseModel):
    """What router and planner are given beside the task itself; `alert` for a task that an alert filed. Other keys are
    kept: a rule may ask for them.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    alert: Alert | None = None


class Review(_Strict):
    """The dead hop that a review task asks the operator about."""

    task_id: str
    hop: int
    reason: str


class GuardianInput(_Strict):
    """A plan to be judged, or a dead task to be reviewed."""

    plan: Plan | None = None
    review: Review | None = None


class ApprovedPlan(_Strict):
    """A plan that may run. `approval` is the key of the wait that a person ended; None: nobody needed to be asked. The
    executor believes the database, not this.
    """

    plan: Plan
    approval: str | None = None


class StepResult(_Strict):
    """What became of one step in the executor."""

    status: Literal["done", "refused", "skipped", "not_run"]
    result: Json = None
    detail: str = ""
    """Why it was refused or skipped, in plain words."""


class Results(_Strict):
    """What was done, step by step, in the plan's order."""

    plan: Plan
    steps: Annotated[tuple[StepResult, ...], Field(strict=False)]


class ReviewedStep(_Strict):
    """One step, read back."""

    capability: str
    what: str
    """What was to be done, in plain words."""
    outcome: Literal["done", "failed", "skipped", "not_run"]
    detail: str = ""
    """What is different from what was expected, or why the step did not run."""
    result: Json = None
    observed: Json = None


class Reviewed(_Strict):
    """What came of the task: the historian writes it up and ends the task with `outcome` and `summary`."""

    outcome: Literal["done", "failed"]
    summary: str
    """One or two sentences in plain words, for whoever asked."""
    steps: Annotated[tuple[ReviewedStep, ...], Field(strict=False)] = ()
