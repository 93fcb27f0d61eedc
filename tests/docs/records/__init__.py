"""Tasks of a run of the demo, as `tracekit tasks show --json` printed them; host and vault have other names."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from tracekit.cli.story import Story, totals
from tracekit.cli.tree import header, summary, tree
from tracekit.queue.tasks import Event, Task

WIDTH = 92


def drawn(name: str) -> str:
    """What `tracekit follow` prints of such a task on a terminal, without its colours."""
    record = json.loads((Path(__file__).parent / f"{name}.json").read_text())
    fields: dict[str, Any] = {
        name: datetime.fromisoformat(value) if value and (name == "now" or name.endswith("_at")) else value
        for name, value in record["task"].items()
    }
    task = Task(**fields)
    story = Story()
    story.add(
        Event(
            seq=event["seq"], task_id=task.id, at=datetime.fromisoformat(event["at"]), kind=event["kind"],
            hop=event["hop"], mode=event["mode"], attempt=event["attempt"], data=event["data"],
        )
        for event in record["events"]
    )  # fmt: skip
    hops = story.at(task)
    lines = [text.plain for text in header(task, WIDTH)]
    lines += ["", *(text.plain for text in tree(task, hops, WIDTH)), ""]
    lines += [text.plain for text in summary(task, totals(hops, task), record["note"], WIDTH)]
    return "\n".join(line.rstrip() for line in lines)
