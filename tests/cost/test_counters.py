"""What Prometheus reads of spending: bounded, and marked where it is made up (C2, T10)."""

from __future__ import annotations

from decimal import Decimal

from tests.cost.driving import book, exactly, ledger_of, usage
from tests.queue.driving import accept, take
from tracekit import metrics
from tracekit.cost import counters
from tracekit.queue import Queue


async def shown(queue: Queue) -> dict[str, dict[tuple[str, ...], Decimal]]:
    async with queue.connection() as connection:
        found: dict[str, dict[tuple[str, ...], Decimal]] = {}
        for name, labels, value in await counters.read(connection):
            found.setdefault(name, {})[labels] = exactly(value)
        return found


async def test_c2_counters_say_who_spent_and_what_was_made_up(queue: Queue) -> None:
    ledger = ledger_of(queue)
    await accept(queue, requester="renee")
    at = await take(queue)
    await book(ledger, at, usage(cache_read=3, cache_write=4, reasoning=2))
    await book(ledger, at, usage(), synthetic=True)
    found = await shown(queue)
    mine = ("router", "", "renee", "test", "m-1", "false")
    assert found[metrics.TOKENS.name] == {
        (*mine, "input"): 10,
        (*mine, "cache_read"): 3,
        (*mine, "cache_write"): 4,
        (*mine, "output"): 20,
        (*mine[:-1], "true", "input"): 10,
        (*mine[:-1], "true", "cache_read"): 0,
        (*mine[:-1], "true", "cache_write"): 0,
        (*mine[:-1], "true", "output"): 20,
    }
    assert found[metrics.REASONING_TOKENS.name][mine] == 2
    assert found[metrics.COST.name] == {mine: Decimal("0.0003459"), (*mine[:-1], "true"): Decimal("0.00033")}
    assert found[metrics.UNPRICED_CALLS.name][mine] == 0


async def test_c2_what_a_later_report_lowers_is_counted_by_itself(queue: Queue) -> None:
    ledger = ledger_of(queue)
    await accept(queue)
    at = await take(queue)
    await book(ledger, at, usage("unknown", key="k", basis="estimated"))
    before = await shown(queue)
    await book(ledger, at, usage("unknown", key="k", output=5, cost=Decimal("0.5")))
    await book(ledger, at, usage("unknown", key="k", output=5, cost=Decimal("0.2")))
    after = await shown(queue)
    mine = ("router", "", "rob", "test", "unknown", "false")
    assert before[metrics.UNPRICED_CALLS.name][mine] == after[metrics.UNPRICED_CALLS.name][mine] == 1
    assert after[metrics.CALLS_PRICED_LATER.name][mine] == 1
    assert after[metrics.TOKENS.name][*mine, "output"] == 20
    assert after[metrics.TOKENS_LOWERED.name][*mine, "output"] == 15
    assert (after[metrics.COST.name][mine], after[metrics.COST_LOWERED.name][mine]) == (Decimal("0.5"), Decimal("0.3"))


async def test_t10_the_values_of_a_label_are_bounded_and_those_that_came_first_stay(queue: Queue) -> None:
    ledger = ledger_of(queue)
    await accept(queue)
    at = await take(queue)
    most = counters.MOST_VALUES
    for number in range(most + 10):
        await book(ledger, at, usage(f"m-{number}"))
    found = (await shown(queue))[metrics.MODEL_CALLS.name]
    models = {labels[4]: value for labels, value in found.items()}
    assert models == {**{f"m-{number}": 1 for number in range(most)}, counters.OTHER: 10}


async def test_c2_a_call_that_turns_out_to_be_another_models_is_taken_off_the_first(queue: Queue) -> None:
    ledger = ledger_of(queue)
    await accept(queue)
    at = await take(queue)
    await book(ledger, at, usage("said", key="k", reasoning=7, basis="estimated"))
    await book(ledger, at, usage("answered", key="k", reasoning=6))
    found = await shown(queue)
    said, answered = (("router", "", "rob", "test", model, "false") for model in ("said", "answered"))
    for booked, lowered, was, is_now in (
        (metrics.MODEL_CALLS, metrics.MODEL_CALLS_LOWERED, 1, 1),
        (metrics.MODEL_REQUESTS, metrics.MODEL_REQUESTS_LOWERED, 1, 1),
        (metrics.REASONING_TOKENS, metrics.REASONING_TOKENS_LOWERED, 7, 6),
    ):
        assert found[booked.name] == {said: was, answered: is_now}
        assert found[lowered.name] == {said: was}
