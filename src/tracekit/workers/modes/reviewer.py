"""reviewer: reads back what was done and compares it with what was expected."""

from __future__ import annotations

from tracekit.envelope import DataTier
from tracekit.queue import GiveUp, HandOff, Outcome
from tracekit.queue.model import Json
from tracekit.queue.payload import plain_text
from tracekit.workers.capabilities import Misconfigured, Refused, UnknownCapability, difference, installed
from tracekit.workers.mode import Hop, Mode, Services
from tracekit.workers.plan import Results, Reviewed, ReviewedStep, Step, StepResult


class Reviewer(Mode[Results]):
    """The world has the last word: a deed whose effect cannot be seen has failed."""

    name = "reviewer"
    input_type = Results

    def __init__(self, services: Services) -> None:
        super().__init__(services)
        self._capabilities = installed()

    async def run(self, hop: Hop[Results]) -> Outcome:
        """Every step that was done, read back; then to the historian."""
        plan, results = hop.input.plan, hop.input.steps
        if len(plan.steps) != len(results):
            return GiveUp(f"the plan has {len(plan.steps)} steps, but there are results of {len(results)}")
        try:
            steps = tuple(
                [await self._review(hop, step, result) for step, result in zip(plan.steps, results, strict=True)]
            )
        except (UnknownCapability, Misconfigured) as error:
            return GiveUp(f"what was done cannot be read back: {error}")
        failed = [step for step in steps if step.outcome == "failed"]
        restricted = hop.task.data_tier is DataTier.RESTRICTED or plan.restricted
        reviewed = Reviewed(
            outcome="failed" if failed else "done", summary=_summary(steps, restricted=restricted), steps=steps
        )
        hop.log.info("reviewer.reviewed", outcome=reviewed.outcome, failed=len(failed))
        return HandOff("historian", reviewed.model_dump(mode="json"), beyond_ttl=True)

    async def _review(self, hop: Hop[Results], step: Step, result: StepResult) -> ReviewedStep:
        capability = self._capabilities.get(step.capability)
        arguments = capability.parse(step.arguments)
        what = plain_text(capability.brief(arguments), 500)
        if result.status == "skipped" or result.status == "not_run":
            return ReviewedStep(capability=step.capability, what=what, outcome=result.status, detail=result.detail)
        if result.status == "refused":
            return ReviewedStep(capability=step.capability, what=what, outcome="failed", detail=result.detail)
        expect = step.expect or capability.expect(arguments)
        try:
            observed = await capability.observe(hop, arguments, expect, result.result)
        except Refused as error:
            return ReviewedStep(
                capability=step.capability, what=what, outcome="failed", detail=str(error), result=result.result
            )
        detail = _differences(expect, observed)
        return ReviewedStep(
            capability=step.capability,
            what=what,
            outcome="failed" if detail else "done",
            detail=detail,
            result=result.result,
            observed=observed,
        )


def _differences(expect: dict[str, Json], observed: dict[str, Json]) -> str:
    """What is not as expected, in plain words; empty where all is."""
    if expect and not observed:
        return "nothing could be read back"
    found = [(thing, difference(expect, facts)) for thing, facts in observed.items()]
    return "; ".join(f"{thing}: {words}" for thing, words in found if words is not None)


def _summary(steps: tuple[ReviewedStep, ...], *, restricted: bool) -> str:
    failed = [step for step in steps if step.outcome == "failed"]
    if restricted:
        return "It did not work." if failed else "Done."
    if failed:
        return plain_text("; ".join(f"Could not {step.what}: {step.detail}" for step in failed), 1_000) + "."
    done = ", then ".join(step.what for step in steps if step.outcome == "done")
    skipped = sum(step.outcome == "skipped" for step in steps)
    rest = f" Left out: {skipped} of {len(steps)} steps." if skipped else ""
    return plain_text(f"Done: {done}" if done else "Nothing was done", 1_000) + f".{rest}"
