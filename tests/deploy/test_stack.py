"""What docker-compose.yml starts, started here as far as it can be without Docker, and a task through all of it.

tracekit's processes are those of the file, with its commands, its environment, its settings, its secrets and its health
checks; PostgreSQL is made ready by its script, and Prometheus is the real one with its configuration and flags. Only
addresses, ports and paths are other ones. A receiver of OTLP is in the collector's place. Grafana, Tempo and Loki are
not here: what they would ask and get is in the other tests.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import yaml
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.deploy.project import DEPLOY, ROOT, make_secrets, services
from tests.support.otlp import OtlpReceiver
from tests.support.ports import free_port
from tests.support.postgres import ThrowawayServer
from tests.support.processes import Process, eventually
from tests.support.programs import require_program

HOUSE = "house"
"""The role and the database; `tracekit` is the superuser of the server that tests have."""


@dataclass
class Stack:
    """The project of this machine: where things are instead."""

    directory: Path
    database: dict[str, Any]
    receiver: OtlpReceiver
    ports: dict[str, int]

    def here(self, text: str) -> str:
        """A text of the project with the paths and addresses of this machine."""
        text = text.replace("/run/secrets", str(self.directory / "secrets"))
        text = text.replace("http://otel-collector:4318", self.receiver.endpoint)
        text = text.replace('"http://ntfy"', '"http://ntfy:80"')
        for name, port in self.ports.items():
            text = re.sub(rf"\b({name}|127\.0\.0\.1|localhost):{PORTS[name]}\b", f"127.0.0.1:{port}", text)
        return text

    def secret(self, name: str) -> str:
        return (self.directory / "secrets" / name).read_text()

    def environment(self, name: str) -> dict[str, str]:
        """Of a service of the project."""
        given = {variable: self.here(value) for variable, value in services()[name]["environment"].items()}
        return {
            **given,
            "TRACEKIT_CONFIG": str(self.directory / "tracekit.toml"),
            "TRACEKIT_HOME": str(self.directory / "home"),
            "TRACEKIT_INGRESS__PORT": str(self.ports["tracekit"]),
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        }

    def run(self, *command: str, name: str) -> subprocess.CompletedProcess[str]:
        """A command in the environment of a service."""
        return subprocess.run(
            [self.here(one) for one in command],
            env=self.environment(name), cwd=self.directory, capture_output=True, text=True, check=False,
        )  # fmt: skip

    def login(self, user: str, password: str) -> psycopg.Connection:
        """A connection as a role of the project."""
        settings = {**self.database, "user": user, "password": password}
        return psycopg.connect(make_conninfo("", **settings), autocommit=True)


PORTS = {"tracekit": 8420, "worker": 9101, "prometheus": 9090, "alertmanager": 9093, "ntfy": 80}
"""Where the project has them. Nobody listens at the last two here, which does tracekit no harm."""


@pytest.fixture(scope="module")
def server() -> Iterator[ThrowawayServer]:
    # Roles are a server's: these are to be made here, by whom the project has for it.
    with ThrowawayServer() as started:
        yield started


@pytest.fixture(scope="module")
def stack(server: ThrowawayServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The project with its secrets, and a server on which its script has run."""
    directory = tmp_path_factory.mktemp("stack")
    make_secrets(directory)
    database = {**conninfo_to_dict(server.dsn), "dbname": HOUSE}
    with OtlpReceiver(directory) as receiver:
        made = Stack(directory, database, receiver, {name: free_port() for name in PORTS})
        script = directory / "database.sql"
        text = made.here((DEPLOY / "postgres" / "tracekit.sql").read_text())
        script.write_text(re.sub(r"(ROLE |DATABASE |OWNER |= ')tracekit\b", rf"\1{HOUSE}", text))
        for _ in ("the volume is empty", "a password has changed"):
            subprocess.run(
                [sys.executable, "-m", "tracekit", "db", "shell", "-v", "ON_ERROR_STOP=1", "-f", str(script)],
                env={"TRACEKIT_DSN": server.dsn, "PATH": "/usr/bin:/bin"},
                cwd=directory,
                check=True,
            )
        dsn = directory / "secrets" / "tracekit_dsn"
        dsn.chmod(0o600)
        dsn.write_text(make_conninfo(dsn.read_text(), **{**database, "user": HOUSE}))
        (directory / "tracekit.toml").write_text(made.here((DEPLOY / "tracekit.toml").read_text()))
        yield made


@pytest.fixture(scope="module")
def migrated(stack: Stack) -> Stack:
    service = services()["migrate"]
    ran = stack.run(*service["entrypoint"], *service["command"], name="migrate")
    assert ran.returncode == 0, ran.stderr
    assert stack.secret("grafana_db_password") not in ran.stdout + ran.stderr
    return stack


@pytest.fixture(scope="module")
async def running(migrated: Stack) -> AsyncIterator[Stack]:
    """The ingress and a worker, both healthy as the project finds them so."""
    async with AsyncExitStack() as stack:
        started: dict[str, Process] = {}
        for name in ("tracekit", "worker"):
            command = [one.replace("9101", str(migrated.ports["worker"])) for one in services()[name]["command"]]
            starting = Process.start(
                "tracekit", *command, log=migrated.directory / f"{name}.log", env=migrated.environment(name)
            )
            started[name] = await stack.enter_async_context(await starting)
        for name, process in started.items():

            async def healthy(name: str = name, process: Process = process) -> bool:
                assert process.returncode is None, process.log
                ran = await asyncio.to_thread(migrated.run, *health(name), name=name)
                return ran.returncode == 0

            await eventually(healthy, f"{name} is healthy")
        yield migrated


def health(name: str) -> list[str]:
    """The health check of a service, or of the image."""
    check = services()[name].get("healthcheck", {}).get("test")
    if check is None:
        (found,) = re.findall(r"^HEALTHCHECK .*?CMD (\[.*?\])$", (ROOT / "Dockerfile").read_text(), re.DOTALL | re.M)
        return list(json.loads(found))
    assert check[0] == "CMD"
    return list(check[1:])


def test_the_health_checks_fail_where_nobody_is_well(stack: Stack) -> None:
    for name in ("tracekit", "worker"):
        assert stack.run(*health(name), name=name).returncode == 1


def test_tracekit_is_no_superuser_and_its_password_is_the_secret(stack: Stack, server: ThrowawayServer) -> None:
    with psycopg.connect(server.dsn) as connection:
        query = "SELECT rolsuper, rolcanlogin, rolcreatedb, rolpassword FROM pg_authid WHERE rolname = %s"
        superuser, login, create, password = connection.execute(query, (HOUSE,)).fetchone() or (None,) * 4
    assert (superuser, login, create) == (False, True, False)
    assert str(password).startswith("SCRAM-SHA-256$")
    assert stack.secret("tracekit_db_password") not in str(password)


def test_migrating_again_changes_nothing(migrated: Stack) -> None:
    service = services()["migrate"]
    ran = migrated.run(*service["entrypoint"], *service["command"], name="migrate")
    assert ran.returncode == 0, ran.stderr


async def test_d2_t8_a_task_is_seen_by_everything_that_the_project_starts(running: Stack) -> None:
    headers = {"Authorization": f"Bearer {running.secret('operator_token')}"}
    address = f"http://127.0.0.1:{running.ports['tracekit']}"
    async with httpx.AsyncClient(base_url=address) as http:
        wanted = {"intent": "note: it all hangs together", "idempotency_key": "stack"}
        asked = await http.post("/v1/tasks", headers=headers, json=wanted)
        assert asked.status_code == 202, asked.text
        task, trace = asked.json()["task_id"], asked.json()["trace_id"]
        followed = await asyncio.to_thread(
            running.run, sys.executable, "-m", "tracekit", "follow", task, name="tracekit"
        )
        assert followed.returncode == 0, followed.stdout + followed.stderr
        assert (await http.get("/metrics")).status_code == 401, "exemplars name traces: not for everybody"
        await _scraped(running, http, trace)

    # Tempo's part: the whole trace has left PostgreSQL for the collector. The root comes last.
    async def root() -> bool:
        spans = [span for span in running.receiver.spans() if span["trace_id"] == trace]
        return any(not span["parent_span_id"] for span in spans)

    await eventually(root, "the trace's root has been shipped")

    # Loki's part: each process' lines have come by the same way, as the panel's query finds them.
    async def lines() -> bool:
        found = [(line["resource"], json.loads(line["body"])) for line in running.receiver.logs()]
        assert {resource["service.name"] for resource, _ in found} <= {"tracekit"}
        return len({of["service.instance.id"] for of, line in found if line["event"] == "process.ready"}) == 2

    await eventually(lines, "the log lines of both processes")
    # Grafana's part: its login reads the task, and changes nothing.
    with running.login("grafana", running.secret("grafana_db_password")) as connection:
        found = connection.execute("SELECT title, state, requester FROM grafana.tasks WHERE trace_id = %s", (trace,))
        assert found.fetchone() == ("note: it all hangs together", "done", "rob")
        with pytest.raises(psycopg.Error):
            connection.execute("SELECT 1 FROM tracekit.envelopes")
        with pytest.raises(psycopg.Error):
            connection.execute("CREATE TABLE public.mine ()")


async def _scraped(stack: Stack, http: httpx.AsyncClient, trace: str) -> None:
    """The real Prometheus, as the project starts it, finds both processes, and an exemplar that leads to the trace."""
    config = yaml.safe_load(stack.here((DEPLOY / "prometheus" / "prometheus.yml").read_text()))
    config["global"]["scrape_interval"] = "1s"
    config["rule_files"] = [
        path.replace("/etc/prometheus/rules", str(ROOT / "alerts")) for path in config["rule_files"]
    ]
    del config["alerting"]
    config["scrape_configs"] = [
        job for job in config["scrape_configs"] if job["job_name"] in ("tracekit", "prometheus")
    ]
    (tracekit, _) = config["scrape_configs"]
    # There is no name server here that knows the workers.
    assert [found["names"] for found in tracekit.pop("dns_sd_configs")] == [["worker"]]
    tracekit["static_configs"][0]["targets"].append(f"127.0.0.1:{stack.ports['worker']}")
    (stack.directory / "prometheus.yml").write_text(yaml.safe_dump(config))
    flags = [
        flag.replace("/etc/prometheus/", f"{stack.directory}/").replace("=/prometheus", f"={stack.directory}/metrics")
        for flag in services()["prometheus"]["command"]
    ]
    address = f"127.0.0.1:{stack.ports['prometheus']}"
    process = await _started("prometheus", *flags, f"--web.listen-address={address}", log=stack.directory / "prom.log")
    try:
        *_, asked = health("prometheus")

        async def ready() -> bool:
            assert process.returncode is None, (stack.directory / "prom.log").read_text()
            try:
                return (await http.get(stack.here(asked))).is_success
            except httpx.TransportError:
                return False

        await eventually(ready, "Prometheus is healthy")

        async def ask(path: str, **parameters: str) -> Any:
            answer = await http.get(f"http://{address}/api/v1/{path}", params=parameters)
            return answer.raise_for_status().json()["data"]

        async def both() -> bool:
            found = (await ask("query", query='up{job="tracekit"}'))["result"]
            return [one["value"][1] for one in found] == ["1", "1"]

        await eventually(both, "both processes are scraped")
        query = {"query": "tracekit_hop_duration_seconds_bucket", "start": "0", "end": "4000000000"}

        async def exemplars() -> set[str]:
            found = await ask("query_exemplars", **query)
            return {one["labels"]["trace_id"] for series in found for one in series["exemplars"]}

        assert trace in await eventually(exemplars, "exemplars are stored")
    finally:
        process.terminate()
        await process.wait()


async def _started(program: str, *arguments: str, log: Path) -> asyncio.subprocess.Process:
    with log.open("wb") as sink:
        return await asyncio.create_subprocess_exec(require_program(program), *arguments, stderr=sink)


async def test_alertmanagers_health_check_tells_one_that_answers(tmp_path: Path) -> None:
    port = free_port()
    _, *probe = health("alertmanager")
    command = [str(require_program("amtool")), *(one.replace("9093", str(port)) for one in probe)]

    async def answers() -> bool:
        ran = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=False)
        return ran.returncode == 0

    assert not await answers()
    (tmp_path / "alertmanager.yml").write_text("route: {receiver: nobody}\nreceivers: [{name: nobody}]\n")
    flags = [
        flag.replace("/etc/alertmanager/alertmanager.yaml", str(tmp_path / "alertmanager.yml"))
        .replace("=/alertmanager", f"={tmp_path}/data").replace("9093", str(port))
        for flag in services()["alertmanager"]["command"]
    ]  # fmt: skip
    listening = f"--web.listen-address=127.0.0.1:{port}"
    process = await _started("alertmanager", *flags, listening, log=tmp_path / "alertmanager.log")
    try:
        await eventually(answers, "amtool gets an answer")
    finally:
        process.terminate()
        await process.wait()
