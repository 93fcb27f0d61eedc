"""What is drawn for the steps of `test_state_machine`: who works, what is offered, and how attempts end.

What the steps are about (a claim, a task) is drawn as a number, which the step turns into one of those that there are.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import hypothesis.strategies as st

from tests.queue.driving import AT_ONCE
from tests.queue.life_model import review_key
from tracekit.envelope import Origin, Priority
from tracekit.queue import Done, GiveUp, HandOff, Notice, Park, Position, RetryLater
from tracekit.queue.model import Ending, Failed, Released

Drawn = tuple[tuple[int, bool], Ending]
"""Which claim ends (see `picked`), and how."""

WORKERS = ("ada", "bob", "cyd")
MODES = ("a", "b", "guardian")
ITS_REVIEW = "its review"
"""For the key on which a review task hears what became of the dead one."""

KEYS = ("k1", "k2", "k3")

some_hours = st.integers(0, 3).map(lambda n: timedelta(hours=n))
notices = st.sampled_from(
    [None, Notice("approval", "Unlock?", "The front door"), Notice("ci", "Red", "It", urgent=True)]
)
inputs = st.sampled_from([None, {"n": 1}, [2]])

done = st.builds(Done, st.sampled_from(["done", "failed", "rejected"]), st.just("So it was."), notify=st.booleans())
handed_off = st.builds(
    HandOff, st.sampled_from(MODES), inputs, persona=st.sampled_from([None, "butler"]), destructive=st.booleans(),
    tags=st.sampled_from([(), ("x",), ("y", "x")]), beyond_ttl=st.booleans(),
)  # fmt: skip
parked = st.builds(
    Park, st.sampled_from(["ci", "approval"]), st.sampled_from([*KEYS, ITS_REVIEW]), some_hours, inputs,
    on_deadline=st.sampled_from(["resume", "expire"]), notice=notices,
)  # fmt: skip
rested = st.builds(RetryLater, some_hours, st.just("not yet"), extend_ttl=st.booleans())
failed = st.sampled_from([Failed("Boom", "it broke"), Failed("OSError", "no route")])
endings = st.one_of(done, handed_off, parked, rested, failed, st.just(Released()), st.just(GiveUp("no use")))

picked = st.tuples(st.integers(0, 5), st.sampled_from([False, False, True]))
"""One of the claims that are held, the newest first; or (True) one that is lost."""

batches = st.lists(st.tuples(picked, endings), min_size=1, max_size=3)
frees = st.fixed_dictionaries({mode: st.sampled_from([2, 1, 3, 0]) for mode in MODES})
leases = st.sampled_from([2, 1, 3, 1, 2, 0]).map(lambda n: timedelta(hours=n))
effects = st.fixed_dictionaries(
    {
        "step": st.sampled_from(["charge", "light"]),
        "uncertain": st.sampled_from(["rerun", "raise"]),
        "then": st.sampled_from(["leave", "record", "leave", "undo"]),
        "result": inputs,
    }
)
turns: dict[str, Any] = {
    "passed": st.sampled_from([0, 0, 0, 1]),
    "batch": st.just([]) | batches,
    "free": frees,
    "lease": leases,
    "by_age": st.booleans(),
    "sweeps": st.sampled_from([True, False, False]),
    "effect": st.none() | effects,
    "ends": st.lists(endings, max_size=3),
}
offers = st.lists(
    st.fixed_dictionaries(
        {
            "mode": st.sampled_from(MODES[:2]),
            "input": inputs,
            "key": st.integers(1, 12).map(str),
            "origin": st.sampled_from([Origin.MANUAL, Origin.SCHEDULED]),
            "priority": st.sampled_from(Priority),
            "ttl": st.sampled_from([None, None, timedelta(hours=1), timedelta(hours=3)]),
            "retry_policy": st.sampled_from([AT_ONCE.model_copy(update={"max_attempts": n}) for n in (1, 2, 3)]),
            "parent_span_id": st.sampled_from([None, "00f067aa0ba902b7"]),
        }
    ),
    min_size=1,
    max_size=4,
)


def possible(at: Position, ending: Ending) -> Ending:
    """`ending` of that claim: only a review task has a review to wait for."""
    if isinstance(ending, Park) and ending.key == ITS_REVIEW:
        return replace(ending, key=review_key(at.review_of, at.hop) if at.review_of else KEYS[0])
    return ending
