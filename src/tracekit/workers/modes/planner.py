"""planner: a plan of typed steps for what was asked, by rules that are data."""

from __future__ import annotations

from tracekit.queue import GiveUp, HandOff, Outcome
from tracekit.workers import rules
from tracekit.workers.capabilities import UnknownCapability, installed
from tracekit.workers.mode import Hop, Mode, Services
from tracekit.workers.plan import GuardianInput, Plan, PlanRequest
from tracekit.workers.policy import judge


class Planner(Mode[PlanRequest]):
    """Plans, and hands every plan to the guardian: the one place that lets it pass."""

    name = "planner"
    input_type = PlanRequest

    def __init__(self, services: Services) -> None:
        super().__init__(services)
        self._rules = rules.load(services.settings.rules)
        self._capabilities = installed()

    async def propose(self, hop: Hop[PlanRequest]) -> Plan | None:
        """The plan, or None where there is none. The place for a model, whose plan is judged like any other."""
        return self._rules.plan(hop.task, hop.input, self._capabilities)

    async def run(self, hop: Hop[PlanRequest]) -> Outcome:
        """Propose, leave out what cannot be done here, and say whether it is destructive."""
        try:
            plan = await self.propose(hop)
            if plan is None:
                return GiveUp("no rule says what to do for this task; add a plan to the rules file, or abandon it")
            steps = []
            for step in plan.steps:
                lack = self._capabilities.get(step.capability).missing(self.services.settings)
                if lack is None:
                    steps.append(step)
                elif not step.optional:
                    return GiveUp(f"{plan.reason}: {lack}")
            if not steps:
                return GiveUp(f"{plan.reason}: nothing of the plan can be done here")
            plan = plan.model_copy(update={"steps": tuple(steps)})
            judgement = judge(plan, hop.task, self.services.settings, self._capabilities)
        except UnknownCapability as error:
            return GiveUp(f"the plan cannot be used: {error}")
        hop.log.info("planner.planned", reason=plan.reason, steps=len(steps), destructive=judgement.destructive)
        return HandOff(
            "guardian",
            GuardianInput(plan=plan).model_dump(mode="json"),
            destructive=judgement.destructive,
            tags=judgement.tags,
        )
