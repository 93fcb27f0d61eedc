"""Policy: which plans need a person's yes, and why. One rule for the planner, the guardian and the executor."""

from __future__ import annotations

from dataclasses import dataclass

from tracekit.config import Settings
from tracekit.queue import Position
from tracekit.queue.payload import plain_text
from tracekit.workers.capabilities import Capabilities
from tracekit.workers.plan import Plan


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the rules say of a plan for a task."""

    destructive: bool
    why: tuple[str, ...]
    """Why a person must be asked; empty: it may run."""
    tags: tuple[str, ...]


def judge(plan: Plan, task: Position, settings: Settings, capabilities: Capabilities) -> Judgement:
    """Whether `plan` may run for `task` without asking. The same rules for the planner, the guardian and the executor.

    Destructive is what the envelope, the plan or the capability calls so (P4). Of a household member, and of anybody
    unknown, only the allowlist's categories pass (P2). Raises `UnknownCapability`.
    """
    why = []
    destructive = task.destructive
    if task.destructive and not plan.destructive:
        why.append("the task was filed as destructive")
    outside = set()
    for step in plan.steps:
        capability = capabilities.get(step.capability)
        arguments = capability.parse(step.arguments)
        if step.destructive or capability.destructive(arguments):
            destructive = True
            why.append(f"{plain_text(capability.describe(arguments), 200)} is destructive")
        category = capability.category(arguments)
        if category not in settings.guardian.household_allowlist:
            outside.add(category)
    tags: tuple[str, ...] = ()
    if settings.role(task.requester) == "household":
        why += [f"{task.requester} may not use {category} without asking" for category in sorted(outside)]
        if why:
            tags = (f"{task.requester}-originated",)
    return Judgement(destructive, tuple(dict.fromkeys(why)), tags)


def describe(plan: Plan, capabilities: Capabilities) -> tuple[str, ...]:
    """Each step of a plan in plain words. Raises `UnknownCapability`."""
    described = []
    for step in plan.steps:
        capability = capabilities.get(step.capability)
        described.append(capability.describe(capability.parse(step.arguments)))
    return tuple(described)
