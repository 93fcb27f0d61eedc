"""router: which way a task goes, and the persona it goes under, by rules that are data."""

from __future__ import annotations

from tracekit.queue import GiveUp, HandOff, Outcome
from tracekit.workers import rules
from tracekit.workers.mode import Hop, Mode, Services
from tracekit.workers.plan import PlanRequest


class Router(Mode[PlanRequest]):
    """The first hop of a task that a surface filed."""

    name = "router"
    input_type = PlanRequest

    def __init__(self, services: Services) -> None:
        super().__init__(services)
        self._rules = rules.load(services.settings.rules)

    async def run(self, hop: Hop[PlanRequest]) -> Outcome:
        """The first route that fits."""
        given = hop.input.model_dump(mode="json")
        route = self._rules.route(hop.task, given)
        if route is None:
            return GiveUp("no route fits this task; add one to the rules file")
        hop.log.info("router.routed", route=route.name, next=route.mode)
        return HandOff(route.mode, given, persona=route.persona)
