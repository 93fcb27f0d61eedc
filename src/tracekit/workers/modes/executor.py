"""executor: carries an approved plan out, each step once."""

from __future__ import annotations

from functools import partial

from tracekit.cost import OverBudget
from tracekit.queue import GiveUp, HandOff, Outcome
from tracekit.workers.approvals import approved
from tracekit.workers.capabilities import Misconfigured, Refused, Unavailable, UnknownCapability, installed
from tracekit.workers.mode import Hop, Mode, Services
from tracekit.workers.plan import ApprovedPlan, Results, StepResult, plan_hash
from tracekit.workers.policy import judge


class Executor(Mode[ApprovedPlan]):
    """Runs steps through capabilities. What needs approval runs only where the database holds it for exactly this plan,
    whoever handed it over and whatever they said (P6).
    """

    name = "executor"
    input_type = ApprovedPlan

    def __init__(self, services: Services) -> None:
        super().__init__(services)
        self._capabilities = installed()

    async def run(self, hop: Hop[ApprovedPlan]) -> Outcome:
        """The steps in order. After one that the world refused, the others do not run."""
        plan = hop.input.plan
        digest = plan_hash(plan)
        try:
            judgement = judge(plan, hop.task, self.services.settings, self._capabilities)
        except UnknownCapability as error:
            return GiveUp(f"the plan cannot be used: {error}")
        if judgement.why and await approved(self.services.queue, hop.task.task_id, digest) is None:
            return GiveUp("nobody has approved exactly this plan; nothing was executed")
        results: list[StepResult] = []
        for number, step in enumerate(plan.steps, 1):
            if any(result.status == "refused" for result in results):
                results.append(StepResult(status="not_run", detail="a step before it was refused"))
                continue
            capability = self._capabilities.get(step.capability)
            arguments = capability.parse(step.arguments)
            # A task that is planned twice must not take the first plan's results for the second's.
            name = f"step-{number}/{digest[:12]}"
            try:
                result = await hop.effect(
                    name,
                    partial(capability.run, hop, arguments, f"{hop.task.task_id}/{name}"),
                    uncertain="rerun" if capability.repeatable(arguments) else "raise",
                )
                results.append(StepResult(status="done", result=result))
            except OverBudget:
                # What becomes of it is the budget's policy, as for any attempt: nothing was done.
                await self.services.queue.undo_effect(hop.task, name)
                raise
            except (Refused, Unavailable, Misconfigured) as error:
                # All three say that nothing was done: the step is as if it had not begun.
                await self.services.queue.undo_effect(hop.task, name)
                told = f"{error}; {error.hint}" if error.hint else str(error)
                if step.optional:
                    results.append(StepResult(status="skipped", detail=told))
                elif isinstance(error, Refused):
                    results.append(StepResult(status="refused", detail=told))
                elif isinstance(error, Misconfigured):
                    return GiveUp(told)
                else:
                    raise
            hop.log.info("executor.step", step=number, capability=step.capability, status=results[-1].status)
        return HandOff("reviewer", Results(plan=plan, steps=tuple(results)).model_dump(mode="json"), beyond_ttl=True)
