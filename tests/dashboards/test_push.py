"""`tracekit dashboards push`, against a server shaped after Grafana's documented API."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.running import Cli, Ran, environment
from tests.dashboards.bundled import FILES, load
from tests.dashboards.grafana import TOKEN, StandIn, grafana
from tests.support.ports import free_port
from tracekit.dashboards.grafana import Grafana, GrafanaError


@pytest.fixture
def server() -> Iterator[StandIn]:
    with grafana() as held:
        yield held


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """Nothing that it does needs a database."""
    return Cli(environment(tmp_path, "host=/nowhere"))


async def push(cli: Cli, url: str, *more: str, token: str = TOKEN) -> Ran:
    return await cli("dashboards", "push", "--url", url, *more, GRAFANA_TOKEN=token)


async def test_all_are_there_as_they_are_in_the_files_and_a_second_push_changes_nothing(
    cli: Cli, server: StandIn
) -> None:
    first = await push(cli, server.url, "--json")
    assert (first.code, first.err) == (0, "")
    assert [(one["kind"], one["status"]) for one in first.json["pushed"]] == [
        ("folder", "created"),
        *[("dashboard", "created")] * len(FILES),
    ]
    for name in FILES:
        data = load(name)
        kept = server.dashboards[data["uid"]]
        assert {**data, "id": kept["dashboard"]["id"], "version": 1} == kept["dashboard"]
        assert kept["meta"]["folderUid"] == "tracekit"
    writes = list(server.writes)
    again = await push(cli, server.url, "--json")
    assert {one["status"] for one in again.json["pushed"]} == {"unchanged"}
    assert server.writes == writes


async def test_what_somebody_changed_or_moved_is_overwritten(cli: Cli, server: StandIn) -> None:
    await push(cli, server.url)
    server.dashboards["tracekit-task"]["dashboard"]["title"] = "mine now"
    server.dashboards["tracekit-fleet"]["meta"]["folderUid"] = "elsewhere"
    shown = await push(cli, server.url)
    assert shown.code == 0
    assert [line.split()[:3] for line in shown.out.splitlines() if line.startswith("updated")] == [
        ["updated", "dashboard", "tracekit-task"],
        ["updated", "dashboard", "tracekit-fleet"],
    ]
    assert server.dashboards["tracekit-task"]["dashboard"]["title"] == "tracekit · Task"
    assert server.dashboards["tracekit-task"]["dashboard"]["version"] == 2
    assert server.dashboards["tracekit-fleet"]["meta"]["folderUid"] == "tracekit"


def test_a_dry_run_says_what_it_would_do_and_does_nothing(server: StandIn) -> None:
    files = {name: load(name) for name in FILES}
    with Grafana(server.url, TOKEN, dry_run=True) as dry, Grafana(server.url, TOKEN) as there:
        assert {one.status for one in dry.push(files, "tracekit")} == {"created"}
        assert server.writes == []
        there.push(files, "tracekit")
        writes = list(server.writes)
        server.dashboards["tracekit-task"]["dashboard"]["title"] = "mine now"
        assert [one.uid for one in dry.push(files, "tracekit") if one.status == "updated"] == ["tracekit-task"]
        assert server.writes == writes


def test_the_folder_and_a_grafana_below_a_path() -> None:
    with grafana("/monitoring") as server, Grafana(f"{server.url}/", TOKEN) as there:
        pushed = there.push({name: load(name) for name in FILES}, "household")
        assert list(server.folders) == ["household"]
        assert {one.uid: one.url for one in pushed}["tracekit-task"] == f"{server.url}/d/tracekit-task/tracekit-task"


async def test_the_token_may_be_in_a_file_and_is_never_shown(cli: Cli, server: StandIn, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    shown = await cli("dashboards", "push", "--url", server.url, "--token-file", str(file))
    assert shown.code == 0
    assert TOKEN not in shown.out + shown.err
    file.write_text("another-secret-token")
    ran = await cli("--debug", "dashboards", "push", "--url", server.url, "--token-file", str(file))
    assert ran.code == 1
    assert "another-secret-token" not in ran.out + ran.err


POST = ("POST", "/api/dashboards/db")


def refused(url: str, token: str = TOKEN) -> GrafanaError:
    with pytest.raises(GrafanaError) as error, Grafana(url, token) as there:
        there.push({name: load(name) for name in FILES}, "tracekit")
    assert token not in f"{error.value} {error.value.hint}"
    return error.value


@pytest.mark.parametrize(
    ("request_", "status", "answer", "said", "hint"),
    [
        (POST, 403, {"message": "Access denied"}, "refused with 403: Access denied", "role Editor"),
        (POST, 412, {"message": "x", "status": "name-exists"}, "refused with 412", "has this title"),
        (POST, 412, {"message": "x", "status": "version-mismatch"}, "refused with 412", "try again"),
        (POST, 412, {"message": "x", "status": "plugin-dashboard"}, "refused with 412", "a plugin owns it"),
        (POST, 400, {"message": "Cannot save provisioned dashboard"}, "refused with 400", "mounted file"),
        (POST, 500, {"message": "database is locked"}, "500: database is locked", "log"),
        (("GET", "/api/folders/tracekit"), 200, "<html>log in</html>", "is not Grafana's API", "address"),
    ],
)
def test_what_grafana_refuses_is_said_with_a_way_out(
    server: StandIn, request_: tuple[str, str], status: int, answer: Any, said: str, hint: str
) -> None:
    server.refuses[request_] = (status, answer)
    error = refused(server.url)
    assert said in str(error)
    assert hint in error.hint


def test_a_wrong_token_a_wrong_address_and_nobody_there(server: StandIn) -> None:
    error = refused(server.url, "wrong-token")
    assert str(error) == "Grafana refused with 401: Invalid API key"
    assert error.hint.startswith("the token is not (or no longer) valid")
    assert "which is not Grafana's API" in str(refused(f"{server.url}/elsewhere"))
    assert "cannot be reached" in str(refused(f"http://127.0.0.1:{free_port()}"))
    assert "no address of a Grafana" in str(refused("grafana.example.org"))
    for unreadable in ("http://[::1", "http://grafana:hunter2"):
        assert str(refused(unreadable)) == "the URL cannot be read"
    assert str(refused("http://grafana/?token=hunter2")) == "the URL is no address of a Grafana"
    error = refused("http://rob:secret@grafana")
    assert "has a credential in it" in str(error)
    assert "secret" not in f"{error} {error.hint}"


def test_an_answer_that_repeats_the_token_is_not_repeated(server: StandIn) -> None:
    server.refuses[POST] = (500, {"message": f"no such key: Bearer {TOKEN}"})
    assert str(refused(server.url)) == "Grafana refused with 500: no such key: Bearer …"


async def test_without_a_token_nothing_is_asked(cli: Cli, server: StandIn) -> None:
    refused = await cli("dashboards", "push", "--url", server.url)
    assert (refused.code, refused.out) == (2, "")
    assert (
        refused.err
        == "tracekit: there is no token: GRAFANA_TOKEN is not set — set GRAFANA_TOKEN, or give --token-file\n"
    )
    assert server.requests == []
