"""Effects: once a task and step, whatever happens in between (Q5)."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.queue.driving import accept, settle, take
from tracekit.postgres import Pool
from tracekit.queue import Done, LeaseLost, PayloadRefused, Position, Queue
from tracekit.queue.effects import EffectUncertain
from tracekit.queue.model import Failed


async def retried(queue: Queue, position: Position) -> Position:
    """The next attempt, after this one failed."""
    assert await settle(queue, position, Failed("Boom", "it broke"))
    await queue.sweep()
    return await take(queue, position.mode)


@pytest.mark.parametrize("result", [{"id": 7}, None, [], "é"])
async def test_a_recorded_result_is_returned_ever_after_Q5(queue: Queue, result: object) -> None:
    await accept(queue)
    first = await take(queue)
    assert await queue.begin_effect(first, "charge", uncertain="raise") == (False, None)
    await queue.record_effect(first, "charge", result)
    assert await queue.begin_effect(first, "charge", uncertain="raise") == (True, result)
    second = await retried(queue, first)
    assert await queue.begin_effect(second, "charge", uncertain="raise") == (True, result)
    # Another step is another effect, and so is the same step of another task.
    assert await queue.begin_effect(second, "refund", uncertain="raise") == (False, None)
    assert await settle(queue, second, Done())
    await accept(queue)
    assert await queue.begin_effect(await take(queue), "charge", uncertain="raise") == (False, None)


async def test_of_two_records_of_a_step_the_first_stands_Q5(queue: Queue) -> None:
    """A handler may do the same step twice at once."""
    task_id = await accept(queue)
    position = await take(queue)
    for _ in range(2):
        assert await queue.begin_effect(position, "light", uncertain="rerun") == (False, None)
    await queue.record_effect(position, "light", "first")
    await queue.record_effect(position, "light", "second")
    assert await queue.begin_effect(position, "light", uncertain="rerun") == (True, "first")
    kinds = [event.kind for event in await queue.events(task_id)]
    assert kinds == ["task.accepted", "effect.recorded"]


async def test_what_nobody_knows_is_rerun_or_raised_by_choice_Q5(queue: Queue) -> None:
    await accept(queue)
    dead = await take(queue, lease=timedelta(0))
    await queue.begin_effect(dead, "charge", uncertain="raise")
    await queue.begin_effect(dead, "light", uncertain="rerun")
    assert await queue.sweep() == 1
    second = await take(queue)
    with pytest.raises(EffectUncertain, match="may or may not have happened"):
        await queue.begin_effect(second, "charge", uncertain="raise")
    assert await queue.begin_effect(second, "light", uncertain="rerun") == (False, None)
    await queue.record_effect(second, "light", "on")
    third = await retried(queue, second)
    assert await queue.begin_effect(third, "light", uncertain="rerun") == (True, "on")
    with pytest.raises(EffectUncertain):
        await queue.begin_effect(third, "charge", uncertain="raise")
    await queue.undo_effect(third, "charge")
    assert await queue.begin_effect(third, "charge", uncertain="raise") == (False, None)


async def test_undo_forgets_only_what_is_not_recorded_Q5(queue: Queue) -> None:
    await accept(queue)
    position = await take(queue)
    await queue.begin_effect(position, "charge", uncertain="raise")
    await queue.record_effect(position, "charge", 7)
    await queue.undo_effect(position, "charge")
    assert await queue.begin_effect(position, "charge", uncertain="raise") == (True, 7)


async def test_a_late_worker_neither_begins_nor_records_nor_undoes_Q3_Q5(queue: Queue, pool: Pool) -> None:
    task_id = await accept(queue)
    late = await take(queue, lease=timedelta(0))
    await queue.begin_effect(late, "begun", uncertain="rerun")
    assert await queue.sweep() == 1
    for holder in ("nobody", "another"):
        if holder == "another":
            await take(queue)
        with pytest.raises(LeaseLost):
            await queue.begin_effect(late, "new", uncertain="rerun")
        with pytest.raises(LeaseLost):
            await queue.record_effect(late, "begun", "late")
        with pytest.raises(LeaseLost):
            await queue.undo_effect(late, "begun")
    async with pool.connection() as connection:
        cursor = await connection.execute(
            "SELECT step, attempt, finished_at, result FROM tracekit.effects WHERE task_id = %s", [task_id]
        )
        assert await cursor.fetchall() == [("begun", 1, None, None)]
    assert "effect.recorded" not in [event.kind for event in await queue.events(task_id)]


async def test_a_result_that_cannot_be_kept_is_refused_Q11(queue: Queue) -> None:
    await accept(queue)
    position = await take(queue)
    await queue.begin_effect(position, "charge", uncertain="raise")
    with pytest.raises(PayloadRefused, match="larger than"):
        await queue.record_effect(position, "charge", "x" * 1_100_000)
    with pytest.raises(PayloadRefused, match="not JSON"):
        await queue.record_effect(position, "charge", object())
