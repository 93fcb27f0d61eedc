"""The weekly roll-up: what it says of a week that was, whose note it is, and that it comes once a week (C1, P8)."""

from __future__ import annotations

import asyncio
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.cli.running import Cli, environment
from tests.cost.budgeting import let_hold, limit
from tests.cost.driving import book, ledger_of, rows, usage
from tests.queue.driving import accept, settle, take
from tests.workers.modes.driving import Driver, settings_for
from tracekit import ids
from tracekit.config import Settings
from tracekit.cost import late
from tracekit.cost.late import LateReport
from tracekit.demo.home_assistant import HomeAssistantStandIn
from tracekit.envelope import DataTier
from tracekit.queue import Done, HandOff, Park, Queue
from tracekit.queue.model import Failed
from tracekit.queue.tasks import SYNTHETIC_SURFACE
from tracekit.workers.mode import Services
from tracekit.workers.modes.historian import Historian
from tracekit.workers.plan import GuardianInput, Plan, Step
from tracekit.workers.rollup import ChangedByHand, WeekSource, roll_up, sealed, untouched, write_rollup
from tracekit.workers.vault import VaultError, rollup_path, summary_path
from tracekit.workers.week import NoSuchWeek, Week

WEEK = Week(2026, 47)


async def this_week(queue: Queue) -> Week:
    [(now,)] = await rows(queue, "SELECT clock_timestamp()")
    return Week.of(now.astimezone(UTC).date())


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(vault=tmp_path / "vault")


async def lived(queue: Queue) -> tuple[str, list[str]]:
    """A task that failed once, was approved, and asked models; one that died; and two whose data is restricted."""
    ledger = ledger_of(queue)
    task_id = await accept(queue, "executor", intent="Summarize the [week]")
    at = await take(queue, "executor")
    await book(ledger, at, usage(output=200))
    await settle(queue, at, Failed("Unavailable", "no"))
    await queue.sweep()
    at = await take(queue, "executor")
    await settle(queue, at, Park("approval", f"approval:{task_id}", timedelta(hours=1), {}))
    await queue.signal(f"approval:{task_id}", {"decision": "approve"}, dedupe_key="d", sent_by="rob")
    at = await take(queue, "executor")
    await book(ledger, at, usage("unknown"), usage(key="k", basis="estimated"))
    await settle(queue, at, Done(summary="done"))
    secrets = []
    for intent, step in (("the code of the safe", None), ("the second secret", Step(capability="note.write"))):
        tier = {"data_tier": DataTier.RESTRICTED} if step is None else {}
        secrets.append(await accept(queue, "asking", intent=intent, **tier))
        at = await take(queue, "asking")
        await book(ledger, at, usage(local=True, output=9000))
        if step is not None:
            plan = Plan(steps=(step.model_copy(update={"data_tier": DataTier.RESTRICTED}),))
            await settle(queue, at, HandOff("executor", GuardianInput(plan=plan).model_dump(mode="json")))
            at = await take(queue, "executor")
        await settle(queue, at, Done())
    return task_id, secrets


def section(text: str, heading: str) -> str:
    return text.split(f"\n{heading}\n", 1)[1].split("\n#", 1)[0].strip()


async def test_c1_a_week_s_note_has_tasks_approvals_and_what_was_spent(queue: Queue, settings: Settings) -> None:
    await let_hold(queue, limit("total", "day", "requests"), 100)
    await let_hold(queue, limit("total", "week", "usd"), 5)
    task_id, _ = await lived(queue)
    week = await this_week(queue)
    found, text = await roll_up(queue, settings, week)
    assert found == week
    front = yaml.safe_load(text.split("---\n")[1])
    cost = 3 * Decimal("0.00033") - Decimal("0.00033") + 180 * Decimal("0.000015") + 2 * Decimal("0.13503")
    assert (front["week"], front["tasks"], front["over"]) == (str(week), 3, False)
    assert (Decimal(front["cost_usd"]), front["unpriced_calls"], front["model_calls"]) == (cost, 1, 5)
    assert "The week is not over" in text
    tasks = section(text, "## Tasks")
    assert "3 accepted; of them 0 have not ended. 1 of them are restricted" in tasks
    assert "| executor | 2 | 0 | 0 | 0 | 0 |" in tasks
    assert "| all | 3 | 0 | 0 | 0 | 0 |" in tasks
    assert section(text, "## Modes").splitlines()[3].startswith("| executor | 4 | 2 | 1 |")
    assert "| approve | 1 |" in section(text, "## Approvals")
    assert section(text, "## Dead letters") == "No task died."
    spent = section(text, "## Cost")
    assert "and 1 calls without a price" in spent
    assert "in 2 calls of attempts after the first" in spent
    assert "| test/unknown | 1 unpriced |" in section(text, "### By model")
    assert section(text, "### By mode").splitlines()[2].startswith("| asking | ")
    assert "| rob | " in section(text, "### By requester")
    assert "| test/unknown | 1 | 30 | remote |" in section(text, "### Without a price")
    budgets = section(text, "## Budgets")
    assert "| total/day/requests | 100 requests | the dearest of 1 days | 5 requests | 95 requests |" in budgets
    assert "| total/week/usd | \\$5.00 | the week |" in budgets
    # Without a summary in the vault there is nothing to link to.
    assert f"- Summarize the \\[week\\] ({task_id}): " in section(text, "### The dearest")


async def test_c1_links_lead_to_the_summaries_of_the_vault(queue: Queue, settings: Settings) -> None:
    task_id, _ = await lived(queue)
    week = await this_week(queue)
    created_at = (await queue.task(task_id)).created_at
    summary = settings.vault_dir / summary_path(task_id, created_at)
    summary.parent.mkdir(parents=True)
    summary.write_text("it is there")
    _, text = await roll_up(queue, settings, week)
    for heading in ("### The slowest", "### The dearest"):
        [line] = [line for line in section(text, heading).splitlines() if line.startswith("- [")]
        link = line.rpartition("](")[2].partition(")")[0]
        note = settings.vault_dir / rollup_path(week)
        note.parent.mkdir(parents=True, exist_ok=True)
        assert (note.parent / link).read_text() == "it is there"


async def test_p8_nothing_restricted_is_in_it(queue: Queue, settings: Settings) -> None:
    _, secrets = await lived(queue)
    _, text = await roll_up(queue, settings, await this_week(queue))
    for word in ("safe", "second secret", *secrets):
        assert word not in text
    assert section(text, "### The dearest").endswith("- and 2 restricted")


async def test_c1_what_a_demonstration_made_up_is_not_in_it_unless_asked_for(queue: Queue, settings: Settings) -> None:
    await accept(queue, surface=SYNTHETIC_SURFACE, intent="made up")
    at = await take(queue)
    await book(ledger_of(queue), at, usage(), synthetic=True)
    await settle(queue, at, Done())
    # A tag is no mark of it: whoever asks for something chooses its tags.
    await accept(queue, tags=("synthetic",), intent="tagged")
    await settle(queue, await take(queue), Done())
    week = await this_week(queue)
    _, text = await roll_up(queue, settings, week)
    assert "made up" not in text
    assert "- tagged (" in text
    assert text.count("1 accepted") == 1
    assert "No model was called." in text
    _, text = await roll_up(queue, settings, week, synthetic=True)
    assert "**SYNTHETIC**: 1 of 1 calls" in text
    assert "synthetic: true\n" in text
    assert "- made up (" in text


async def test_c1_it_is_written_again_where_more_is_known_and_never_over_a_person_s_words(
    queue: Queue, settings: Settings
) -> None:
    task_id, _ = await lived(queue)
    week = await this_week(queue)

    async def write() -> bool:
        _, text = await roll_up(queue, settings, week)
        return write_rollup(settings.vault_dir, week, text).changed

    note = settings.vault_dir / rollup_path(week)
    assert await write()
    assert not await write()
    assert note.relative_to(settings.vault_dir) == Path(f"{week.year}/weekly/{week}.md")
    # A bill that comes late is in the next one.
    bill = LateReport(source="counters", call="k", result={"input": 10, "output": 999_000})
    await late.settle(ledger_of(queue), task_id, bill, by="rob")
    assert await write()
    theirs = note.read_text() + "\nAsk the bank about this.\n"
    note.write_text(theirs)
    with pytest.raises(ChangedByHand, match="left alone"):
        await write()
    assert note.read_text() == theirs
    note.unlink()
    note.symlink_to(settings.vault_dir / "elsewhere.md")
    with pytest.raises(ChangedByHand):
        await write()
    note.unlink()
    note.mkdir()
    with pytest.raises(VaultError):
        await write()


@given(st.data())
def test_c1_any_change_of_a_note_is_seen(data: st.DataObject) -> None:
    text = sealed({"week": "2026-W47", "tasks": 3}, "# Week 47\n\nIt was quiet.\n")
    assert untouched(text)
    place = data.draw(st.integers(0, len(text) - 1))
    with_ = data.draw(st.text(max_size=3))
    changed = text[:place] + with_ + text[place + 1 :]
    assert untouched(changed) == (changed == text)
    assert not untouched("my own note")


# --- each week ------------------------------------------------------------------------------------------------------


async def last_week(queue: Queue, task_id: str) -> Week:
    """Move a task's acceptance into the week before this one."""
    [(now,)] = await rows(queue, "SELECT clock_timestamp()")
    week = Week.before(now, "UTC")
    then = week.bounds("UTC")[3]
    old = ids.first_task_id(then)[:10] + task_id[10:]
    async with queue.connection() as connection:
        await connection.execute(
            "UPDATE tracekit.envelopes SET id = %s, created_at = %s WHERE id = %s", [old, then, task_id]
        )
        await connection.execute("UPDATE tracekit.queue SET task_id = %s WHERE task_id = %s", [old, task_id])
    return week


async def test_q5_a_week_that_is_over_is_filed_once_however_many_look(queue: Queue, settings: Settings) -> None:
    async with httpx.AsyncClient() as http:
        services = Services(settings, queue, http)
        sources = [source for _ in range(8) for source in Historian(services).sources()]
        assert [type(source) for source in sources] == [WeekSource] * 8
        # A week in which nothing happened, or nothing real, has no roll-up.
        await accept(queue)
        assert await sources[0].poll() == 0
        await last_week(queue, await accept(queue, "idle", surface=SYNTHETIC_SURFACE))
        assert await sources[0].poll() == 0
        week = await last_week(queue, await accept(queue, "idle"))
        assert sum(await asyncio.gather(*(source.poll() for source in sources))) == 1
        assert await sources[0].poll() == 0
    found = await rows(queue, "SELECT intent, origin, requester, mode FROM tracekit.envelopes WHERE surface = 'rollup'")
    assert found == [(f"Roll the week {week} up", "scheduled", "system", "guardian")]


async def test_c1_what_was_filed_writes_the_note_and_its_own_summary(queue: Queue, tmp_path: Path) -> None:
    week = await last_week(queue, await accept(queue, "idle"))
    settings = settings_for(tmp_path, HomeAssistantStandIn(token="unused"), vault=tmp_path / "vault")
    note = settings.vault_dir / rollup_path(week)

    async def rolled() -> Any:
        async with httpx.AsyncClient() as http:
            driver = Driver(queue, settings, http)
            await WeekSource(Services(settings, queue, http)).poll()
            await driver.run()
            assert driver.visited == ["guardian", "executor", "reviewer"]
            return await driver.reviewed()

    reviewed = await rolled()
    assert (reviewed.outcome, reviewed.summary) == ("done", f"Done: write the roll-up of the week {week}.")
    assert untouched(note.read_text())
    assert "1 accepted; of them 1 have not ended." in note.read_text()
    # Where a person has been at it, the task says so, and fails.
    await rows(queue, "UPDATE tracekit.envelopes SET idempotency_key = 'gone' WHERE surface = 'rollup' RETURNING id")
    note.write_text("mine")
    reviewed = await rolled()
    assert reviewed.outcome == "failed"
    assert "is not as tracekit wrote it" in reviewed.summary
    assert note.read_text() == "mine"


def test_a_week_is_seven_local_days_whatever_the_clocks_do() -> None:
    assert [str(day) for day in (WEEK.days[0], WEEK.days[-1])] == ["2026-11-16", "2026-11-22"]
    for week, hours in ((WEEK, 168), (Week(2026, 13), 167), (Week(2026, 43), 169)):
        since, *_, until = week.bounds("Europe/Amsterdam")
        assert (until - since) == timedelta(hours=hours)
    assert Week.of(date(2027, 1, 3)) == Week.parse("2026-W53")
    assert Week.before(datetime(2026, 11, 22, 23, 30, tzinfo=UTC), "Europe/Amsterdam") == WEEK
    assert Week.before(datetime(2026, 11, 22, 22, 30, tzinfo=UTC), "Europe/Amsterdam") == Week(2026, 46)
    for text in ("2026-W54", "2025-W53", "2026-47", "W47", "2026-W00", "0000-W01", "9999-W52", ""):
        with pytest.raises(NoSuchWeek):
            Week.parse(text)


# --- the command ----------------------------------------------------------------------------------------------------


async def test_the_command_writes_it_or_shows_it(queue: Queue, dsn: str, tmp_path: Path) -> None:
    cli = Cli(environment(tmp_path, dsn))
    await lived(queue)
    week = str(await this_week(queue))
    note = tmp_path / "vault" / rollup_path(Week.parse(week))
    shown = (await cli.ok("rollup", "--week", week, "--stdout")).out
    assert shown.startswith("---\nweek: ")
    assert not note.exists()
    for changed in (True, False):
        assert (await cli.ok("rollup", "--week", week, "--json")).json == {
            "week": week, "path": str(note), "changed": changed
        }  # fmt: skip
    assert note.read_text() == shown
    assert (await cli.ok("rollup", "--week", week)).out == f"{note} (as it was)\n"
    note.write_text("mine")
    refused = await cli("rollup", "--week", week)
    assert (refused.code, refused.out, refused.err.count("\n")) == (3, "", 1)
    for wrong in (("--week", "last"), ("--week", "2999-W01"), ("--stdout", "--json")):
        assert (await cli("rollup", *wrong)).code == 2
    refused = await cli("rollup", "--stdout", TRACEKIT_CLI_PRINCIPAL="renee")
    assert (refused.code, refused.out) == (2, "")
    assert "0 accepted" in (await cli.ok("rollup", "--stdout")).out
