"""`tracekit follow` on a pipe, as JSON, on a terminal, over a restart, and its exit codes."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from datetime import timedelta

import pytest

from tests.cli.running import Cli, environment
from tests.queue.driving import accept, settle, take
from tests.queue.test_follow import history
from tests.support.postgres import ThrowawayServer
from tracekit.envelope import DataTier
from tracekit.postgres import migrate, open_pool
from tracekit.queue import Done, GiveUp, HandOff, Park, Queue
from tracekit.queue.claim import heartbeat
from tracekit.queue.model import EndState


def plain(shown: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)


async def test_on_a_pipe_each_thing_is_a_line_and_the_summary_ends_it(cli: Cli, queue: Queue) -> None:
    task_id = await history(queue)
    ran = await cli.ok("follow", task_id)
    assert "\x1b" not in ran.out
    lines = ran.out.splitlines()
    assert "accepted from rob via test (manual)" in lines[0]
    assert "attempt 1 handed off to b [w1, queued " in lines[1]
    assert "attempt 1 failed: OSError: no, again in " in lines[2]
    assert "wait for approval ended: signal by rob" in lines[4]
    assert "task done: well" in lines[6]
    assert lines[7].startswith("✔ done in ")
    assert lines[10] == "  4 attempts in 2 hops, 1 retry"


async def test_json_resumed_at_every_seq_is_the_same_whole(cli: Cli, queue: Queue) -> None:
    task_id = await history(queue)
    whole = (await cli.ok("follow", task_id, "--json")).lines
    assert [event["kind"] for event in whole][:2] == ["task.accepted", "attempt.ended"]
    assert {"seq", "at", "kind", "hop", "mode", "attempt", "task_id", "trace_id", "data"} == set(whole[0])
    for number in (0, len(whole) // 2, len(whole) - 1):
        rest = (await cli.ok("follow", task_id, "--json", "--since-seq", str(whole[number]["seq"]))).lines
        assert whole[: number + 1] + rest == whole


@pytest.mark.parametrize(
    ("outcome", "code"), [("done", 0), ("failed", 10), ("expired", 12), ("rejected", 13), ("abandoned", 14)]
)
async def test_the_exit_code_tells_the_end(cli: Cli, queue: Queue, outcome: EndState, code: int) -> None:
    task_id = await accept(queue)
    await settle(queue, await take(queue), Done(outcome, "so it is"))
    assert (await cli("follow", task_id)).code == code


async def test_the_dlq_ends_it_and_unknown_ids_are_not_found(cli: Cli, queue: Queue) -> None:
    task_id = await accept(queue)
    await settle(queue, await take(queue), GiveUp("no lamp"))
    ran = await cli("follow", task_id)
    assert (ran.code, ran.err) == (11, "")
    assert "✘ dead after" in ran.out
    missing = await cli("follow", "zzzz")
    assert (missing.code, missing.out) == (4, "")
    assert missing.err == "tracekit: no task or trace begins with 'zzzz' — `tracekit tasks` lists the newest\n"


async def test_a_prefix_and_the_trace_name_the_task(cli: Cli, queue: Queue) -> None:
    task_id = await history(queue)
    trace_id = (await queue.task(task_id)).trace_id
    by_trace, by_prefix = await asyncio.gather(cli.ok("follow", trace_id), cli.ok("follow", task_id[:20].lower()))
    assert by_trace.out == by_prefix.out != ""


async def test_ctrl_c_leaves_the_task_running_and_says_so(cli: Cli, queue: Queue) -> None:
    task_id = await accept(queue)
    async with cli.started("follow", task_id) as process:
        assert process.stdout is not None
        assert b"accepted" in await process.stdout.readline()
        process.send_signal(signal.SIGINT)
        out, err = await process.communicate()
    [event] = await queue.events(task_id)
    assert (process.returncode, out) == (130, b"")
    assert err.decode() == (
        f"The task goes on. To follow it further: tracekit follow {task_id} --since-seq {event.seq}\n"
    )
    assert (await queue.task(task_id)).state == "open"


async def test_a_reader_that_leaves_is_no_error(cli: Cli, queue: Queue) -> None:
    task_id = await accept(queue)
    async with cli.started("follow", task_id) as process:
        assert process.stdout is not None
        await process.stdout.readline()
        process.stdout._transport.close()  # type: ignore[attr-defined]
        await settle(queue, await take(queue), Done())
        assert process.stderr is not None
        assert await process.stderr.read() == b""
        assert await process.wait() == 1


async def test_on_a_terminal_the_tree_lives_until_the_end(cli: Cli, queue: Queue) -> None:
    task_id = await accept(queue, "router", intent="turn on the \x1b[31mkitchen\x1b[0m light")
    async with cli.on_terminal("follow", task_id) as terminal:
        await terminal.see("waiting for a worker")
        await terminal.see("no worker serves router: tracekit up")
        first = await take(queue, "router", worker="hearth-1")
        await terminal.see("on hearth-1")
        await settle(queue, first, HandOff("guardian", persona="butler"))
        await settle(queue, await take(queue, "guardian"), Park("approval", "k", timedelta(hours=1)))
        await terminal.see("waiting for approval")
        await terminal.see(f"tracekit approvals approve {task_id}")
        await queue.signal("k", {}, dedupe_key="d", sent_by="rob")
        await settle(queue, await take(queue, "guardian"), Done(summary="The light is on."))
        assert await terminal.end() == 0
    shown = plain(terminal.shown)
    final = shown[shown.rindex("turn on the") :]
    assert "├─ router" in final
    assert "tracekit approvals" not in final
    assert "└─ guardian butler" in final
    assert "├─ wait approval" in final
    assert "signal by rob" in final
    assert "━" in final
    assert "✔ done in" in final
    assert "The light is on." in final
    assert "\x1b[31mkitchen" not in terminal.shown, "what a task says must not reach the terminal as a command"
    assert all(len(line) <= 100 for line in final.splitlines())


async def test_a_worker_that_was_seen_serves_its_modes(cli: Cli, queue: Queue) -> None:
    task_id = await accept(queue, "router")
    async with queue.connection() as connection:
        await heartbeat(connection, "hearth-1", ["router"], "hears", {}, timedelta(seconds=60))
    async with cli.on_terminal("follow", task_id) as terminal:
        await terminal.see("waiting for a worker")
        await settle(queue, await take(queue, "router"), Done())
        assert await terminal.end() == 0
    assert "no worker serves" not in terminal.shown


async def test_no_color_is_respected(cli: Cli, queue: Queue) -> None:
    task_id = await history(queue)
    async with Cli({**cli.environment, "NO_COLOR": "1"}).on_terminal("tasks", "show", task_id) as terminal:
        assert await terminal.end() == 0
    assert not re.search(r"\x1b\[[0-9;]*3[0-7][0-9;]*m", terminal.shown)


async def test_ctrl_c_on_a_terminal_keeps_what_was_seen(cli: Cli, queue: Queue) -> None:
    task_id = await accept(queue)
    async with cli.on_terminal("follow", task_id) as terminal:
        await terminal.see("waiting for a worker")
        os.kill(terminal.process.pid, signal.SIGINT)
        assert await terminal.end() == 130
    last = plain(terminal.shown).splitlines()
    assert last[-1] == f"The task goes on. To follow it further: tracekit follow {task_id}"
    assert "waiting for a worker" in "".join(last[-8:])


async def test_a_restarted_server_interrupts_nothing(tmp_path: object) -> None:
    with ThrowawayServer() as server:
        await migrate(server.dsn)
        pool = await open_pool(server.dsn, min_size=1, max_size=2, name="test", autocommit=True)
        try:
            queue = Queue(pool)
            task_id = await accept(queue)
            async with Cli(environment(server.home, server.dsn)).started("follow", task_id, "--json") as process:
                assert process.stdout is not None
                assert process.stderr is not None
                first = await process.stdout.readline()
                await asyncio.to_thread(server.server.stop, mode="immediate")
                assert b"the database is away" in await process.stderr.readline()
                with await asyncio.to_thread(server.server.acquire):
                    await pool.check()
                    await settle(queue, await take(queue), Done())
                    out, err = await process.communicate()
            assert (process.returncode, err) == (0, b"tracekit: the database is back\n")
            kinds = [line.split(b'"kind": ')[1].split(b",")[0] for line in (first + out).splitlines()]
            assert kinds == [b'"task.accepted"', b'"attempt.ended"', b'"task.ended"']
        finally:
            await pool.close()


async def test_a_household_member_sees_nothing_restricted(cli: Cli, queue: Queue) -> None:
    task_id = await accept(queue, intent="the secret thing", data_tier=DataTier.RESTRICTED)
    await settle(queue, await take(queue), Done(summary="the secret outcome"))
    for arguments in (["follow", task_id], ["follow", task_id, "--json"], ["tasks", "show", task_id], ["tasks"]):
        assert "secret" in (await cli.ok(*arguments)).out or "--json" in arguments or arguments[0] == "follow"
        shown = (await cli.ok(*arguments, TRACEKIT_CLI_PRINCIPAL="renee")).out
        assert "secret" not in shown
        assert task_id in shown or arguments[0] == "follow"
