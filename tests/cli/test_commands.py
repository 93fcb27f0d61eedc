"""Every other command, as a process."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import tomllib
from datetime import timedelta
from pathlib import Path
from typing import Any

import click
import httpx
import pytest

import tracekit
from tests.cli.running import COMMAND, Cli
from tests.queue.driving import accept, settle, take
from tests.queue.test_audit import histories
from tests.support.processes import eventually, patience
from tracekit import __version__
from tracekit.cli.commands import cli as root
from tracekit.cli.parameters import DURATION
from tracekit.config import Token
from tracekit.envelope import Envelope, json_schema
from tracekit.postgres import EmbeddedServer
from tracekit.queue import Done, GiveUp, Park, Queue


def every_command(group: click.Group, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], click.Command]]:
    found: list[tuple[tuple[str, ...], click.Command]] = []
    for name, command in group.commands.items():
        found.append(((*path, name), command))
        if isinstance(command, click.Group):
            found += every_command(command, (*path, name))
    return found


@pytest.mark.parametrize(("path", "command"), every_command(root), ids=lambda value: str(value))
def test_every_command_has_help_with_examples(path: tuple[str, ...], command: click.Command) -> None:
    assert command.help or isinstance(command, click.Group)
    if not isinstance(command, click.Group) or command.epilog:
        assert "Examples:" in (command.epilog or "")
        assert f"tracekit {' '.join(path)}" in (command.epilog or "")
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{path}: {parameter.opts} says nothing"


async def test_version_and_wrong_usage(cli: Cli) -> None:
    version, flag, wrong = await asyncio.gather(cli.ok("version"), cli.ok("--version"), cli("nonsense"))
    assert version.out.strip() == __version__
    assert flag.out == f"tracekit {__version__}\n"
    assert (wrong.code, wrong.out) == (2, "")


async def test_submit_list_show(cli: Cli, queue: Queue) -> None:
    ran = await cli.ok("submit", "turn on the light", "--priority", "high", "--ttl", "15m", "--key", "k1")
    task = await queue.task(ran.out.strip())
    assert (task.intent, task.rank, task.requester, task.surface, task.origin) == (
        "turn on the light", 2, "rob", "cli", "manual",
    )  # fmt: skip
    assert task.expires_at is not None
    assert task.expires_at - task.created_at == timedelta(minutes=15)
    again = await cli("submit", "something else", "--key", "k1")
    assert (again.code, again.out) == (0, ran.out)
    assert "This key is known" in again.err
    listed = (await cli.ok("tasks", "--json")).json
    assert [row["id"] for row in listed] == [task.id]
    text = (await cli.ok("tasks")).out
    assert text.splitlines()[0].split() == ["STATE", "TASK", "AGE", "WHERE", "REQUESTER", "INTENT"]
    assert "router ready" in text
    shown = (await cli.ok("tasks", "show", task.id[:12], "--json")).json
    assert (shown["task"]["id"], shown["events"][0]["kind"], shown["note"]) == (task.id, "task.accepted", None)
    assert "No such tasks" in (await cli("tasks", "list", "--state", "failed")).err


async def test_submit_continues_the_callers_trace(cli: Cli, queue: Queue) -> None:
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    ran = await cli.ok("submit", "x", "--json", TRACEPARENT=parent, TRACESTATE="a=1")
    assert ran.json["trace_id"] == "4bf92f3577b34da6a3ce929d0e0e4736"
    async with queue.connection() as connection:
        cursor = await connection.execute("SELECT parent_span_id, trace_state FROM tracekit.envelopes")
        assert await cursor.fetchall() == [("00f067aa0ba902b7", "a=1")]


async def test_submit_refuses_what_the_envelope_does(cli: Cli) -> None:
    empty, wrong = await asyncio.gather(cli("submit", ""), cli("submit", "x", "--ttl", "soon"))
    assert (empty.code, empty.out) == (2, "")
    assert empty.err.startswith("tracekit: the request was refused: intent: ")
    assert (wrong.code, "'soon' is not a duration" in wrong.err) == (2, True)


async def test_submit_and_follow(cli: Cli, queue: Queue) -> None:
    async with cli.started("submit", "x", "--follow", "--json") as process:
        assert process.stdout is not None
        accepted = json.loads(await process.stdout.readline())
        assert accepted["kind"] == "task.accepted"
        await settle(queue, await take(queue), Done("rejected"))
        out, err = await process.communicate()
    assert (process.returncode, err) == (13, b"")
    assert json.loads(out.splitlines()[-1])["data"]["outcome"] == "rejected"


async def test_the_dlq_is_listed_shown_redriven_and_abandoned(cli: Cli, queue: Queue) -> None:
    task_id = await accept(queue, intent="dim the hall")
    await settle(queue, await take(queue), GiveUp("no lamp"))
    assert [row["task_id"] for row in (await cli.ok("dlq", "--json")).json] == [task_id]
    assert " given_up no lamp open dim the hall" in " ".join((await cli.ok("dlq")).out.splitlines()[1].split())
    shown = (await cli.ok("dlq", "show", task_id)).out
    assert "given_up after 1 attempt\n" in shown
    assert "no lamp" in shown
    refused = await cli("dlq", "redrive", task_id, TRACEKIT_CLI_PRINCIPAL="renee")
    assert (refused.code, "renee is not an operator" in refused.err) == (2, True)
    assert (await cli.ok("dlq", "redrive", task_id)).out == f"{task_id} redriven\n"
    assert (await queue.task(task_id)).state == "open"
    twice = await cli("dlq", "redrive", task_id)
    assert (twice.code, "is open, not dead" in twice.err) == (1, True)
    await settle(queue, await take(queue), GiveUp("still no lamp"))
    assert (await cli.ok("dlq", "abandon", task_id)).out == f"{task_id} abandoned\n"
    assert (await queue.task(task_id)).state == "abandoned"
    assert "Nothing is dead." in (await cli("dlq")).err
    assert [row["resolution"] for row in (await cli.ok("dlq", "--all", "--json")).json] == ["abandoned", "redriven"]


PLAN: dict[str, Any] = {"plan_hash": "ab" * 32, "plan": {"steps": [{"capability": "note.write"}]}, "round": 1}
PLAN |= {"data_tier": "internal", "what": ["delete the backups"], "why": ["it cannot be undone"]}


async def waiting(queue: Queue) -> str:
    task_id = await accept(queue, "guardian")
    park = Park("approval", f"approval:{task_id}:{PLAN['plan_hash']}:1", timedelta(hours=1), PLAN)
    assert await settle(queue, await take(queue, "guardian"), park)
    return task_id


async def test_p7_that_a_task_waits_for_money_is_shown_to_the_household_and_not_how_much(
    cli: Cli, queue: Queue
) -> None:
    over = {"over": ["total/day/usd"], "usd": "0.17", "tokens": 4321}
    what = ["spend beyond its budget: ask the model m-1, for $0.17 at most, with 4,321 tokens at most"]
    data = {**PLAN, "over_budget": over["over"], "plan": over, "what": what, "why": ["The total is $5.00"]}
    await accept(queue, "executor")
    assert await settle(queue, await take(queue, "executor"), Park("approval", "k", timedelta(hours=1), data))
    assert "$0.17" in (await cli.ok("approvals")).out
    for more in ((), ("--json",)):
        shown = (await cli.ok("approvals", "list", *more, TRACEKIT_CLI_PRINCIPAL="renee")).out
        assert "spend beyond its budget" in shown
        assert not any(number in shown for number in ("0.17", "4321", "4,321", "5.00"))


async def test_a_list_of_approvals_has_no_room_for_a_whole_plan(cli: Cli, queue: Queue) -> None:
    await accept(queue, "guardian")
    data = {**PLAN, "what": ["write the note a.md: " + 500 * "and so on "]}
    assert await settle(queue, await take(queue, "guardian"), Park("approval", "k", timedelta(hours=1), data))
    listed = (await cli.ok("approvals")).out
    assert "write the note a.md" in listed
    assert max(map(len, listed.splitlines())) < 300


async def test_approvals_are_listed_and_decided_once(cli: Cli, queue: Queue) -> None:
    task_id = await waiting(queue)
    assert [row["task_id"] for row in (await cli.ok("approvals", "--json")).json] == [task_id]
    assert "delete the backups" in (await cli.ok("approvals")).out
    refused = await cli("approvals", "approve", task_id, "--yes", TRACEKIT_CLI_PRINCIPAL="renee")
    assert (refused.code, "renee is not an operator" in refused.err) == (2, True)
    ran = await cli.ok("approvals", "approve", task_id, "--yes")
    assert "1. delete the backups" in ran.out
    assert "it cannot be undone" in ran.out
    assert ran.out.endswith(f"{task_id} approved\n")
    resumed = await take(queue, "guardian")
    assert resumed.resumption is not None
    assert resumed.resumption.signal is not None
    assert (resumed.resumption.signal.payload["decision"], resumed.resumption.signal.sent_by) == ("approve", "rob")
    late = await cli("approvals", "reject", task_id, "--yes")
    assert (late.code, "waits for no approval" in late.err) == (4, True)


async def test_an_approval_is_asked_for_before_it_is_given(cli: Cli, queue: Queue) -> None:
    task_id = await waiting(queue)
    no = await cli("approvals", "reject", task_id, stdin="n\n")
    assert (no.code, "Reject it? [y/N]" in no.out) == (130, True)
    assert (await queue.task(task_id)).hop_state == "parked"
    yes = await cli("approvals", "defer", task_id, "--for", "8h", stdin="y\n")
    assert (yes.code, yes.out.splitlines()[-1]) == (0, f"Defer it? [y/N]: {task_id} deferred")
    resumed = await take(queue, "guardian")
    assert resumed.resumption is not None
    assert resumed.resumption.signal is not None
    assert resumed.resumption.signal.payload["defer_seconds"] == 28_800


async def test_audit_names_what_is_missing_and_says_so_by_its_code(cli: Cli, queue: Queue) -> None:
    made = await histories(queue)
    whole = await cli.ok("audit")
    assert whole.out.endswith("everything holds together\n")
    async with queue.connection() as connection:
        await connection.execute("DELETE FROM tracekit.queue WHERE task_id = %s", [made["ready"]])
    broken = await cli("audit", "--since", "1h")
    assert (broken.code, broken.err) == (1, "")
    assert broken.out.splitlines()[0].startswith(made["ready"])
    assert "  queue-missing: is open and has no row in the queue" in broken.out
    as_json = await cli("audit", "--json")
    finding, summary = as_json.lines
    assert (as_json.code, finding["task_id"], finding["check"]) == (1, made["ready"], "queue-missing")
    assert (summary["findings"], summary["summary"]["tasks"]) == (1, 13)


async def test_envelope_schema_and_check(cli: Cli, tmp_path: Path) -> None:
    assert (await cli.ok("envelope", "schema")).json == json_schema()
    good = {"intent": "x", "idempotency_key": "1"}
    file = tmp_path / "task.json"
    file.write_text(json.dumps(good))
    assert (await cli.ok("envelope", "check", "--request", str(file))).out == "valid\n"
    bad = await cli("envelope", "check", "--request", "-", stdin='{"intent": 3, "more": 1}')
    assert (bad.code, bad.out) == (2, "")
    assert {line.split(":")[0] for line in bad.err.splitlines()} == {"intent", "idempotency_key", "more"}
    whole = await cli("envelope", "check", "--json", str(file))
    missing = {name for name, field in Envelope.model_fields.items() if field.is_required()} - set(good)
    assert {fault["field"] for fault in whole.json["faults"]} == missing


async def test_a_token_is_made_for_a_known_principal(cli: Cli) -> None:
    ran = await cli("token", "create", "--surface", "zulip", "--principal", "rob")
    token, _, lines = ran.out.partition("\n")
    [made] = tomllib.loads(lines)["tokens"]
    assert Token.model_validate({**made, "origin": "manual"}).sha256 == hashlib.sha256(token.encode()).hexdigest()
    stranger = await cli("token", "create", "--surface", "zulip", "--principal", "mallory")
    assert (stranger.code, "rob" in stranger.err) == (2, True)
    odd = await cli("token", "create", "--surface", 'x"\ny', "--principal", "rob")
    assert (odd.code, odd.out) == (2, "")


async def test_a_saved_token_is_in_the_file_and_alone_on_stdout(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "new" / "tracekit.toml"
    create = ("token", "create", "--principal", "rob", "--save", "--surface")
    first = await cli(*create, "laptop", TRACEKIT_CONFIG=str(file))
    assert (first.code, first.out.count("\n")) == (0, 1)
    assert f"Saved in {file}; a running `tracekit up` or `serve`" in first.err
    assert "already" not in first.err
    assert file.stat().st_mode & 0o777 == 0o600
    file.chmod(0o640)
    second = await cli(*create, "laptop", "--json", TRACEKIT_CONFIG=str(file))
    assert "There is a token of rob on laptop already; both are valid." in second.err
    assert second.json["saved"] == str(file)
    assert (file.stat().st_mode & 0o777, os.listdir(file.parent)) == (0o640, [file.name])
    made = tomllib.loads(file.read_text())["tokens"]
    tokens = [first.out.strip(), second.json["token"]]
    assert [one["sha256"] for one in made] == [hashlib.sha256(token.encode()).hexdigest() for token in tokens]


async def test_tokens_that_are_saved_at_once_are_all_kept(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "tracekit.toml"
    file.write_text("log_level = 'info'")
    names = [f"surface-{number}" for number in range(4)]
    await asyncio.gather(*(cli("token", "create", "--principal", "rob", "--surface", one, "--save") for one in names))
    saved = tomllib.loads(file.read_text())
    assert sorted(token["surface"] for token in saved["tokens"]) == names
    assert saved["log_level"] == "info"


@pytest.mark.parametrize(
    ("text", "variables", "said"),
    [("tokens = []\n", {}, "would not be valid"), ("", {"TRACEKIT_TOKENS": "[]"}, "TRACEKIT_TOKENS overrides")],
)
async def test_a_token_that_would_not_hold_is_not_saved(
    cli: Cli, tmp_path: Path, text: str, variables: dict[str, str], said: str
) -> None:
    file = tmp_path / "tracekit.toml"
    file.write_text(text)
    ran = await cli("token", "create", "--surface", "x", "--principal", "rob", "--save", **variables)
    assert (ran.code, ran.out, said in ran.err) == (2, "", True)
    assert (file.read_text(), os.listdir(tmp_path)) == (text, [file.name])


@pytest.mark.parametrize("before", ["", "[principals]\nrob = { role = 'operator' }\n"])
async def test_the_lines_that_add_a_principal_do(cli: Cli, tmp_path: Path, before: str) -> None:
    file = tmp_path / "tracekit.toml"
    file.write_text(before)
    create = ("token", "create", "--surface", "laptop", "--principal", "anna", "--save")
    ran = await cli(*create)
    assert (ran.code, ran.out) == (2, "")
    file.write_text(before + ran.err.split("\n\n", 1)[1])
    assert (await cli(*create)).code == 0
    assert {"rob", "anna"} <= set((await cli.ok("config", "show", "--json")).json["values"]["principals"])


async def test_words_need_no_quotes(cli: Cli, queue: Queue) -> None:
    ran = await cli.ok("submit", "note:", "the", "boiler", "--priority", "high")
    assert (await queue.task(ran.out.strip())).intent == "note: the boiler"
    assert (await cli.ok("audit")).out.startswith("1 task (0 ended, 1 open, 0 dead), 1 hop, 0 attempts, ")


async def test_a_mode_that_is_not_there_is_said_before_the_process_starts(cli: Cli) -> None:
    ran = await cli("worker", "--modes", "exekutor")
    assert (ran.out, ran.err.count("\n")) == ("", 1)
    assert "no installed package brings the mode exekutor" in ran.err


async def test_d6_a_worker_that_is_asked_for_metrics_counts_what_waits(cli: Cli, queue: Queue) -> None:
    await accept(queue, mode="executor")

    async def scraped(url: str) -> bool:
        async with httpx.AsyncClient() as http:
            return 'tracekit_hops{mode="executor",priority="normal",state="ready"} 1.0' in (await http.get(url)).text

    async with cli.started("worker", "--modes", "router", "--metrics-port", "0") as worker:
        assert worker.stderr is not None
        async with patience():
            while (said := json.loads(await worker.stderr.readline()))["event"] != "metrics.ready":
                pass
        await eventually(lambda: scraped(said["url"]), "what waits is counted")


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
async def test_lists_keep_ids_whole_on_narrow_terminals(cli: Cli, queue: Queue, columns: int) -> None:
    approval = await waiting(queue)
    dead = await accept(queue, intent="dim the hall and the kitchen and the cellar, please")
    await settle(queue, await take(queue), GiveUp("no lamp"))
    for command, ids, more in (
        ("tasks", [approval, dead], ["STATE", "open", "dead"]),
        ("approvals", [approval], ["delete the"]),
        ("dlq", [dead], ["STATE", "open"]),
    ):
        async with cli.on_terminal(command, columns=columns) as terminal:
            assert await terminal.end() == 0
        lines = re.sub(r"\x1b\[[0-9;]*m", "", terminal.shown).splitlines()
        assert all(len(line) <= columns for line in lines), lines
        for text in [*ids, *more]:
            assert any(text in line for line in lines), (text, lines)


async def test_config_show_masks_secrets(cli: Cli, tmp_path: Path) -> None:
    secrets = {
        "TRACEKIT_DSN": "postgresql://me:hunter2@db/x",
        "TRACEKIT_LISTEN_DSN": "postgresql://me:hunter2@db/x",
        "TRACEKIT_HOME_ASSISTANT__TOKEN": "hunter2",
        "TRACEKIT_ALERTMANAGER__URL": "http://me:hunter2@alerts:9093",
        "TRACEKIT_GUARDIAN__APPROVAL_SECRET": "hunter2hunter2hunter2",
    }
    for arguments in (["config", "show"], ["config", "show", "--json"]):
        shown = (await cli.ok(*arguments, **secrets)).out
        assert "hunter2" not in shown
        assert "alerts:9093" in shown
    values = (await cli.ok("config", "show", "--json", **secrets)).json["values"]
    assert values["worker"]["lease"] == "PT60S" or values["worker"]["lease"] == "PT1M"


async def test_a_broken_configuration_is_one_line(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "tracekit.toml").write_text("[worker]\nleas = 3\n")
    ran = await cli("tasks")
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert "worker.leas: unknown setting, did you mean lease?" in ran.err
    debug = await cli("--debug", "tasks")
    assert (debug.code, "Traceback" in debug.err) == (2, True)


async def test_no_database_is_one_line_without_the_password(cli: Cli) -> None:
    ran = await cli("tasks", TRACEKIT_DSN="postgresql://me:hunter2@127.0.0.1:1/x")
    assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1)
    assert ran.err.startswith("tracekit: cannot connect to the database at ")
    assert "hunter2" not in ran.err


async def test_a_database_behind_a_dsn_is_migrated_only_when_asked(cli: Cli, postgres: Any) -> None:
    empty = postgres.create_database()
    try:
        ran = await cli("tasks", TRACEKIT_DSN=empty)
        assert (ran.code, "tracekit db migrate" in ran.err) == (5, True)
        status = await cli("db", "status", "--json", TRACEKIT_DSN=empty)
        assert (status.code, status.json["schema"]) == (5, "does not fit")
        assert "applied 0001_substrate" in (await cli.ok("db", "migrate", TRACEKIT_DSN=empty)).out
        assert (await cli.ok("db", "migrate", TRACEKIT_DSN=empty)).out == "The schema is up to date.\n"
        assert (await cli.ok("db", "status", TRACEKIT_DSN=empty)).out.startswith("database")
        assert (await cli("tasks", TRACEKIT_DSN=empty)).code == 0
        start = await cli("db", "start", TRACEKIT_DSN=empty)
        assert (start.code, "names a DSN" in start.err) == (1, True)
    finally:
        postgres.drop_database(empty)


async def test_the_embedded_server_comes_by_itself_and_stays_when_told(embedded: Cli, home: Path) -> None:
    assert (await embedded("db", "status")).code == 3
    first = (await embedded.ok("submit", "x")).out.strip()
    assert [row["id"] for row in (await embedded.ok("tasks", "--json", TRACEKIT_POSTGRES_LINGER="0")).json] == [first]
    try:
        assert "The server runs" in (await embedded.ok("db", "start")).out
        assert "already" in (await embedded.ok("db", "start")).out
        status = (await embedded.ok("db", "status", "--json")).json
        assert (status["running"], status["kept"], status["in_use"], status["schema"]) == (True, True, True, "fits")
        sql = ["-A", "-t", "-c", "select count(*) from tracekit.tasks"]
        assert (await embedded.ok("db", "shell", *sql)).out == "1\n"
        assert (await embedded("db", "shell", "-c", "nonsense")).code == 1
    finally:
        stopped = await embedded("db", "stop")
    assert (stopped.code, stopped.out) == (0, "The server is stopped.\n")
    assert not EmbeddedServer(home).status().running
    assert (await embedded.ok("db", "stop")).out == "The server did not run.\n"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("15m", 900), ("1h30m", 5400), ("2 h 5 min", 7500), ("7d", 604_800), ("0.5", 0.5)],
)
def test_durations(text: str, seconds: float) -> None:
    assert DURATION.convert(text, None, None) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "soon", "-5", "5x", "0", "m", "9" * 30 + "w", "1h nonsense"])
def test_durations_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        DURATION.convert(text, None, None)


@pytest.mark.parametrize("command", [("tasks", "show"), ("tasks", "list", "--requester"), ("follow", "--json")])
async def test_an_argument_that_is_not_text_is_wrong_input(cli: Cli, command: tuple[str, ...]) -> None:
    ran = await cli(*command, os.fsdecode(b"\xff"))
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("tracekit: an argument is not text")


async def test_a_screen_without_the_characters_shows_others(cli: Cli, queue: Queue) -> None:
    submitted = await cli.ok("submit", "note: coffee ☕", "--json")
    ran = await cli.ok("tasks", "show", submitted.json["task_id"], PYTHONIOENCODING="latin-1")
    assert "note: coffee ?" in ran.out


async def test_a_full_disk_is_no_fault_of_tracekits(cli: Cli, queue: Queue) -> None:
    process = await asyncio.create_subprocess_exec(
        *COMMAND, "config", "show", env=cli.environment, stdout=os.open("/dev/full", os.O_WRONLY),
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, err = await process.communicate()
    assert process.returncode == 1
    assert err.startswith(b"tracekit: the system refused: [Errno 28]")


def test_every_command_that_a_message_names_is_there() -> None:
    groups = {name: command for name, command in root.commands.items() if isinstance(command, click.Group)}
    named = {
        (file.name, *found)
        for file in Path(tracekit.__file__).parent.rglob("*.py")
        for found in re.findall(r"`tracekit ([a-z]+)(?: ([a-z]+))?", file.read_text(encoding="utf-8"))
    }
    assert len(named) > 10
    for file, name, below in sorted(named):
        assert name in root.commands, f"{file}: tracekit {name}"
        if below and name in groups:
            assert below in groups[name].commands, f"{file}: tracekit {name} {below}"
