"""The historian: what it writes of a task that really ran through the queue, and what it does when it cannot."""

from __future__ import annotations

import resource
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
import yaml

from tests.cost.driving import book, ledger_of, usage
from tests.queue.driving import accept, settle, take
from tracekit.config import Settings
from tracekit.envelope import DataTier
from tracekit.queue import Done, HandOff, LeaseLost, Outcome, Park, Position, Queue
from tracekit.queue.model import Failed
from tracekit.workers.markdown import MOST_ROWS
from tracekit.workers.mode import Hop, Services
from tracekit.workers.modes.historian import (
    RESTRICTED_SUMMARY,
    Historian,
    read_record,
    render,
)
from tracekit.workers.plan import Plan, Reviewed, ReviewedStep, Step
from tracekit.workers.vault import VaultError, summary_path

REVIEWED = Reviewed(
    outcome="done",
    summary="The front door is unlocked.",
    steps=(ReviewedStep(capability="home_assistant.call", what="unlock lock.front_door", outcome="done"),),
)


@pytest.fixture
async def services(queue: Queue, tmp_path: Path) -> AsyncIterator[Services]:
    async with httpx.AsyncClient() as http:
        yield Services(Settings(vault=tmp_path / "vault"), queue, http)


async def run(services: Services, position: Position) -> Outcome:
    hop = Hop(position, Reviewed.model_validate(position.input), services, structlog.get_logger())
    return await Historian(services).run(hop)


async def lived(queue: Queue, reviewed: Reviewed = REVIEWED, **fields: Any) -> str:
    """A task that failed once, was approved, did something, and is due in the historian."""
    task_id = await accept(queue, "executor", **fields)
    assert await settle(queue, await take(queue, "executor"), Failed("Unavailable", "no answer | from *the* lock"))
    await queue.sweep()
    parked = await take(queue, "executor")
    wait = Park("approval", f"approval:{task_id}", timedelta(hours=1), {"plan": "secret plan"})
    assert await settle(queue, parked, wait)
    await queue.signal(wait.key, {"decision": "approve"}, dedupe_key="decision", sent_by="rob")
    working = await take(queue, "executor")
    assert await queue.begin_effect(working, "1 unlock", uncertain="raise") == (False, None)
    await queue.record_effect(working, "1 unlock", {"state": "unlocked", "access_token": "hunter2"})
    assert await queue.begin_effect(working, "2 tell", uncertain="rerun") == (False, None)
    answer = HandOff("historian", reviewed.model_dump(mode="json"), persona="butler")
    assert await settle(queue, working, answer)
    return task_id


def files(services: Services) -> list[Path]:
    return sorted(path for path in services.settings.vault_dir.rglob("*") if path.is_file())


def front_of(text: str) -> dict[str, Any]:
    _, front, _ = text.split("---\n", 2)
    return dict(yaml.safe_load(front))


async def test_the_summary_has_who_when_what_and_how_it_went(services: Services, queue: Queue) -> None:
    task_id = await lived(queue, intent="Unlock the [front] door\n# now", destructive=True, tags=("renee-originated",))
    position = await take(queue, "historian")
    outcome = await run(services, position)
    assert outcome == Done("done", "The front door is unlocked.")
    assert await settle(queue, position, outcome)
    task = await queue.task(task_id)
    assert (task.state, task.summary) == ("done", "The front door is unlocked.")

    [file] = files(services)
    day = task.created_at
    assert file.relative_to(services.settings.vault_dir) == Path(f"{day:%Y/%m}/{day:%Y-%m-%d}-{task_id}.md")
    text = file.read_text()
    front = front_of(text)
    assert {name: front[name] for name in ("task_id", "trace_id", "requester", "origin", "outcome", "data_tier")} == {
        "task_id": task_id,
        "trace_id": task.trace_id,
        "requester": "rob",
        "origin": "manual",
        "outcome": "done",
        "data_tier": "internal",
    }
    assert front["started"] <= front["ended"]
    lines = text.splitlines()
    assert r"# Unlock the \[front\] door \# now" in lines
    assert "**Done.** The front door is unlocked." in lines
    assert "It was destructive. Tags: renee-originated." in text
    assert r"| 1 | home\_assistant.call | unlock lock.front\_door | done |  |" in lines
    hops = [line.split(" | ") for line in lines if line.startswith("| 1 | executor |")]
    assert [(row[3], row[6], row[7].removesuffix(" |")) for row in hops] == [
        ("1", "failed", r"Unavailable: no answer \| from \*the\* lock"),
        ("2", "parked", ""),
        ("3", r"handed\_off", ""),
    ]
    [approval] = [line.split(" | ") for line in lines if line.startswith("| approval |")]
    assert (approval[1], approval[4], approval[5]) == ("1", "approve", "rob |")
    [unlock] = [line for line in lines if line.startswith("| 1 unlock |")]
    assert '"state": "unlocked"' in unlock
    assert any(line.startswith("| 2 tell | 1 | begun, not known whether it happened |") for line in lines)
    assert "hunter2" not in text
    assert "secret plan" not in text


async def test_a_repeat_writes_nothing_again_and_a_lost_record_writes_the_same_file_Q5(
    services: Services, queue: Queue
) -> None:
    await lived(queue)
    position = await take(queue, "historian")
    first = await run(services, position)
    [file] = files(services)
    written = file.stat().st_mtime_ns, file.stat().st_ino
    assert await run(services, position) == first
    assert (file.stat().st_mtime_ns, file.stat().st_ino) == written

    # An attempt that died after the file and before its record leaves the file to be written again, in its place.
    async with queue.connection() as connection:
        await connection.execute("UPDATE tracekit.effects SET finished_at = NULL WHERE step = 'summary'")
    assert await run(services, position) == first
    assert files(services) == [file]
    assert file.stat().st_ino != written[1]


async def test_of_a_restricted_task_nothing_of_its_content_is_written_P8(services: Services, queue: Queue) -> None:
    reviewed = Reviewed(
        outcome="failed",
        summary="The clinic answered no.",
        steps=(ReviewedStep(capability="clinic.ask", what="ask the clinic", outcome="failed"),),
    )
    task_id = await lived(queue, reviewed, intent="Ask the clinic for results", data_tier=DataTier.RESTRICTED)
    outcome = await run(services, await take(queue, "historian"))
    assert outcome == Done("failed", "It did not work.")
    [file] = files(services)
    text = file.read_text()
    assert f"**Failed.** {RESTRICTED_SUMMARY}" in text
    assert front_of(text)["data_tier"] == "restricted"
    for content in ("clinic", "lock", "unlock", "tell", "secret"):
        assert content not in text.lower()
    # Who, when and how long is no content.
    assert task_id in text
    assert "| Unavailable |" in text
    assert "| rob |" in text
    assert "effect 1" in text


async def test_a_plan_with_a_restricted_step_is_restricted_too_P8(services: Services, queue: Queue) -> None:
    await accept(queue, "executor", intent="Water the plants", input={"plan": {"steps": "odd"}})
    plan = Plan(steps=(Step(capability="clinic.ask", data_tier=DataTier.RESTRICTED), Step(capability="note.write")))
    first = await take(queue, "executor")
    assert await settle(queue, first, HandOff("executor", {"plan": plan.model_dump(mode="json")}))
    second = await take(queue, "executor")
    assert await settle(queue, second, HandOff("historian", REVIEWED.model_dump(mode="json")))
    assert await run(services, await take(queue, "historian")) == Done("done", "Done.")
    [file] = files(services)
    assert front_of(file.read_text())["data_tier"] == "restricted"
    assert "plants" not in file.read_text()


async def test_the_summary_has_what_the_task_spent_also_of_a_restricted_one(services: Services, queue: Queue) -> None:
    for tier in (DataTier.INTERNAL, DataTier.RESTRICTED):
        task_id = await lived(queue, data_tier=tier)
        position = await take(queue, "historian")
        await book(ledger_of(queue), position, usage(), usage(), usage("unknown", cache_read=7, cache_write=2))
        assert "cost_usd" not in front_of(render(await read_record(queue, await lived(queue)), REVIEWED))
        record = await read_record(queue, task_id)
        text = render(record, REVIEWED)
        front = front_of(text)
        assert (front["cost_usd"], front["model_calls"], front["unpriced_calls"]) == ("0.00066", 3, 1)
        assert "## Cost" in text
        assert "| m-1 | historian | 2 | 20 | 0 | 40 | 0.00066 |" in text.replace("\\", "")
        assert "| unknown | historian | 1 | 12 | 7 | 20 | 0 and 1 unpriced |" in text
        await settle(queue, position, Done())
        await settle(queue, await take(queue, "historian"), Done())


async def test_a_vault_that_cannot_be_written_is_said_and_tried_again(services: Services, queue: Queue) -> None:
    task_id = await lived(queue)
    vault = services.settings.vault_dir
    vault.write_text("a file where the vault should be")
    position = await take(queue, "historian")
    with pytest.raises(VaultError, match=f"cannot write the summary into the vault {vault}: ") as failed:
        await run(services, position)
    assert await settle(queue, position, Failed("VaultError", str(failed.value)))
    await queue.sweep()
    vault.unlink()
    position = await take(queue, "historian")
    assert await settle(queue, position, await run(services, position))
    assert (await queue.task(task_id)).state == "done"
    [file] = files(services)
    assert "VaultError" in file.read_text()


async def test_a_disk_that_is_full_in_the_middle_leaves_the_old_file_whole(services: Services, queue: Queue) -> None:
    await lived(queue)
    position = await take(queue, "historian")
    await run(services, position)
    [file] = files(services)
    before = file.read_text()
    async with queue.connection() as connection:
        await connection.execute("UPDATE tracekit.effects SET finished_at = NULL WHERE step = 'summary'")
    # The kernel refuses to write more than this to any file, as it does when a disk is full.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        with pytest.raises(VaultError, match="File too large"):
            await run(services, position)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files(services) == [file]
    assert file.read_text() == before


async def test_a_late_historian_writes_nothing_Q3(services: Services, queue: Queue) -> None:
    await lived(queue)
    late = await take(queue, "historian", lease=timedelta(0))
    await queue.sweep()
    with pytest.raises(LeaseLost):
        await run(services, late)
    assert files(services) == []


async def test_text_of_strangers_runs_nothing_in_the_vault(services: Services, queue: Queue) -> None:
    intent = "```dataviewjs\nalert()\n``` <script>x</script> [[../secret]] ![i](http://evil.example/x.png) %%x%% | #tag"
    task_id = await lived(queue, intent=intent)
    text = render(await read_record(queue, task_id), REVIEWED)
    [title] = [line for line in text.splitlines() if line.startswith("# ")]
    for live in ("`", "<", ">", "[", "]", "|", "#", "%"):
        assert title.removeprefix("# ").count(live) == title.count(f"\\{live}")
    assert "http://evil" not in text


async def test_a_task_with_very_many_attempts_has_a_summary_of_bounded_size(services: Services, queue: Queue) -> None:
    task_id = await lived(queue)
    async with queue.connection() as connection:
        await connection.execute(
            "INSERT INTO tracekit.record (task_id, at, kind, hop, mode, attempt, persona, worker, outcome, ready_at,"
            " claimed_at, data) SELECT task_id, at, kind, hop, mode, attempt, persona, worker, outcome, ready_at,"
            " claimed_at, data FROM tracekit.record, generate_series(1, 400)"
            " WHERE task_id = %s AND kind = 'attempt.ended'",
            [task_id],
        )
    text = render(await read_record(queue, task_id), REVIEWED)
    assert text.count("| 1 | executor |") == MOST_ROWS
    assert f"… and {3 * 401 - MOST_ROWS} more." in text


async def test_the_path_follows_from_the_task_alone(queue: Queue) -> None:
    task = await queue.task(await accept(queue))
    again = await queue.task(task.id)
    assert summary_path(task.id, task.created_at) == summary_path(again.id, again.created_at)
    assert summary_path(task.id, task.created_at).name.endswith(f"-{task.id}.md")
