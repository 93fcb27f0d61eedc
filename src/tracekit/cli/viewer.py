"""What a person is shown: plain characters only, and unless they are the operator no content of a restricted task and
nothing of what anything costs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

from tracekit.config import Role
from tracekit.cost.limits import NOT_ASKED
from tracekit.queue.deadletters import DeadLetter
from tracekit.queue.tasks import Event, Task

HIDDEN = "(restricted)"

_CONTENT = frozenset({"summary", "reason", "step"})
"""Fields of an event that quote what the task is about. Of an error the type stays."""


@dataclass(frozen=True, slots=True)
class Viewer:
    """Who looks, and in what role."""

    principal: str
    role: Role

    def sees(self, data_tier: str) -> bool:
        """Whether content of this tier is shown to them."""
        return self.role == "operator" or data_tier != "restricted"

    @property
    def sees_costs(self) -> bool:
        """Whether dollars, tokens and limits are shown to them."""
        return self.role == "operator"

    def task(self, task: Task) -> Task:
        """The task as they may see it."""
        if self.sees(task.data_tier):
            return task
        return dataclasses.replace(task, intent=HIDDEN, summary=HIDDEN if task.summary else None, tags=[])

    def events(self, task: Task, events: Iterable[Event]) -> list[Event]:
        """The lines of the task's record that they may see, as they may see them."""
        return [self._event(task, event) for event in events if self.sees_costs or event.kind != "usage.booked"]

    def _event(self, task: Task, event: Event) -> Event:
        error = event.data.get("error")
        if not self.sees_costs and isinstance(error, dict) and NOT_ASKED in (message := str(error.get("message"))):
            asked = message.partition(NOT_ASKED)[0]
            said = {**error, "message": f"{asked}{NOT_ASKED}there is no room for it"}
            event = dataclasses.replace(event, data={**event.data, "error": said})
        if self.sees(task.data_tier):
            return event
        data = {name: HIDDEN if name in _CONTENT else value for name, value in event.data.items()}
        if isinstance(error := data.get("error"), dict):
            data["error"] = {"type": error.get("type"), "message": HIDDEN}
        return dataclasses.replace(event, data=data)

    def dead_letter(self, entry: DeadLetter) -> DeadLetter:
        """An entry of the DLQ as they may see it. It does not know its task's tier: only the operator sees content."""
        if self.role == "operator":
            return entry
        return dataclasses.replace(entry, intent=HIDDEN, error=HIDDEN if entry.error else None)
