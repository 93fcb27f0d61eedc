"""docker-compose.yml: Docker Compose takes it, its parts agree with one another, and it gives nothing away.

Docker itself cannot run here. What can be had reads each file: Docker Compose, hadolint, promtool, amtool, tracekit.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from tests.deploy.project import (
    DEPLOY,
    NAMES,
    ROOT,
    compose,
    config,
    hadolint,
    make_secrets,
    mounted,
    ours,
    parse_command,
    project,
    secrets_said,
    services,
)
from tests.support.programs import require_program
from tracekit import config as settings
from tracekit.cli.commands import cli

ONE_SHOT = {"migrate", "probe"}
SCRAPED = {"otel-collector": 8888, "tempo": 3200, "loki": 3100, "prometheus": 9090, "alertmanager": 9093,
           "grafana": 3000}  # fmt: skip
"""Where each of the others shows its metrics: as its configuration here says, or by its own default."""


def test_compose_takes_it_and_warns_of_nothing() -> None:
    ran = compose("config", "--quiet")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_compose_would_say_what_is_wrong(tmp_path: Path) -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    for broken in (
        text.replace("condition: service_healthy", "condition: healthy"),
        text.replace("  loki-data:\n", ""),
    ):
        assert broken != text
        (tmp_path / "docker-compose.yml").write_text(broken)
        assert compose("config", "--quiet", directory=tmp_path).returncode != 0


@pytest.mark.parametrize("name", NAMES)
def test_a_service_is_pinned_bounded_and_watched(name: str) -> None:
    service = services()[name]
    image = service["image"]
    assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+(\.\d+)?(-\w+)?", image), f"{image} is no exact version"
    assert "." not in image.partition("/")[0].partition(":")[0], "no registry's host"
    if name not in ONE_SHOT:
        assert service.get("healthcheck", {}).get("test") or name in ours(), "its own, or that of our image"
        assert service["restart"] == "unless-stopped"
        assert int(service["deploy"]["resources"]["limits"]["memory"]) <= 1024**3
        assert service["logging"]["options"]["max-size"], "no log grows without end"
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_all_of_it_fits_a_laptop() -> None:
    stay = [service for name, service in services().items() if name not in ONE_SHOT]
    assert sum(int(service["deploy"]["resources"]["limits"]["memory"]) for service in stay) <= 4 * 1024**3


def test_what_ends_is_waited_for_so_that_up_returns() -> None:
    # Of a service that nobody waits for in this way, `up --wait` would want that it stays.
    waited = {
        name
        for service in services().values()
        for name, one in service.get("depends_on", {}).items()
        if one["condition"] == "service_completed_successfully"
    }
    assert waited == ONE_SHOT


def test_a_go_program_knows_its_limit() -> None:
    for name in ("tempo", "loki", "prometheus"):
        limit = int(services()[name]["deploy"]["resources"]["limits"]["memory"])
        soft = int(services()[name]["environment"]["GOMEMLIMIT"].removesuffix("MiB")) * 1024**2
        assert 0.8 * limit < soft < 0.95 * limit, name


def test_no_port_is_open_to_other_machines() -> None:
    published = [port for service in services().values() for port in service.get("ports", [])]
    assert {port["host_ip"] for port in published} == {"127.0.0.1"}
    assert len({port["published"] for port in published}) == len(published)
    assert all("network_mode" not in service or service["network_mode"] == "none" for service in services().values())
    assert not [name for name, service in services().items() if "privileged" in service or "pid" in service]


def test_everything_that_is_mounted_is_there_and_cannot_be_written() -> None:
    for name, service in services().items():
        for mount in service.get("volumes", []):
            if mount["type"] == "bind":
                source = Path(mount["source"])
                assert source.is_relative_to(ROOT), f"{name}: {source}"
                assert source.exists(), f"{name}: there is no {source}"
                assert mount["read_only"], f"{name} could write {source}"
                assert "docker.sock" not in mount["source"]
            else:
                assert mount["source"] in project()["volumes"]


def test_everything_in_deploy_is_used() -> None:
    used = [source for service in services().values() for source in mounted(service).values()]
    unused = [
        str(file.relative_to(ROOT))
        for file in DEPLOY.rglob("*")
        if file.is_file() and not any(file.is_relative_to(source) for source in used)
    ]
    assert unused == ["deploy/secrets.sh"]


# --- secrets ----------------------------------------------------------------------------------------------------------


def test_secrets_are_made_once_and_only_their_maker_gets_at_them(tmp_path: Path) -> None:
    first = make_secrets(tmp_path)
    directory = tmp_path / "secrets"
    assert directory.stat().st_mode & 0o777 == 0o700
    made = {file.name: file.read_text() for file in directory.iterdir()}
    assert {file.stat().st_mode & 0o777 for file in directory.iterdir()} == {0o444}, "containers are other users"
    assert {Path(one["file"]).name for one in project()["secrets"].values()} == set(made)
    values = [value for name, value in made.items() if name != "tracekit_dsn"]
    assert all(re.fullmatch(r"[0-9a-f]{48}", value) for value in values)
    assert len(set(values)) == len(values)
    assert not any(value in first.stdout + first.stderr for value in values)
    (directory / "operator_token").unlink()
    again = make_secrets(tmp_path)
    assert again.stdout == "made secrets/operator_token\n"
    kept = {file.name: file.read_text() for file in directory.iterdir()}
    assert {name for name in made if made[name] != kept[name]} == {"operator_token"}
    assert kept["tracekit_dsn"].endswith(f"password={kept['tracekit_db_password']}")


def test_no_secret_is_in_git_nor_in_the_image() -> None:
    ignored = subprocess.run(
        ["git", "check-ignore", "secrets/tracekit_dsn"], cwd=ROOT, capture_output=True, check=False
    )
    assert ignored.returncode == 0
    for service in services().values():
        for variable, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|TOKEN|DSN", variable):
                assert value.startswith("/run/secrets/"), variable
    assert (ROOT / ".dockerignore").read_text().splitlines()[1] == "*", "what is not named is not sent"


@pytest.mark.parametrize("name", NAMES)
def test_a_service_gets_the_secrets_that_it_names_and_no_other(name: str) -> None:
    service = services()[name]
    texts = [*service.get("environment", {}).values(), *(service["command"] or [])]
    granted = {one["target"]: one["source"] for one in service.get("secrets", [])}
    for source in mounted(service).values():
        # The ingress alone looks at who may ask.
        if source == DEPLOY / "tracekit.toml" and name != "tracekit":
            continue
        # Prometheus reads the rules of the directory, and not what Alertmanager reads.
        files = source.glob("*.rules.yaml") if source == ROOT / "alerts" else source.rglob("*")
        texts += [file.read_text() for file in ([source] if source.is_file() else files) if file.is_file()]
    assert secrets_said("\n".join(texts)) == set(granted)


# --- tracekit ---------------------------------------------------------------------------------------------------------


def test_the_commands_of_tracekit_are_ones_that_it_has() -> None:
    (script,) = services()["migrate"]["command"]
    lines = [services()["tracekit"]["command"], services()["worker"]["command"]]
    lines += [shlex.split(line.removeprefix("exec "))[1:] for line in script.splitlines() if "tracekit " in line]
    assert len(lines) == 4
    for line in lines:
        parse_command(cli, list(line))


def test_its_settings_are_valid_and_name_only_what_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    make_secrets(tmp_path)
    for name, service in ours().items():
        with monkeypatch.context() as patched:
            granted = {one["source"] for one in service["secrets"]}
            for variable, value in service["environment"].items():
                patched.setenv(variable, value.replace("/run/secrets", str(tmp_path / "secrets")))
            patched.setenv("TRACEKIT_CONFIG", str(mounted(service)[service["environment"]["TRACEKIT_CONFIG"]]))
            loaded = settings.load()
        assert loaded.dsn.get_secret_value() == (tmp_path / "secrets" / "tracekit_dsn").read_text()
        assert loaded.guardian.approval_secret.get_secret_value()
        if name == "tracekit":
            assert {str(token.file) for token in loaded.tokens} == {f"/run/secrets/{one}" for one in granted} - {
                "/run/secrets/tracekit_dsn", "/run/secrets/approval_secret",
            }  # fmt: skip
        published = services()["tracekit"]["ports"][0]["published"]
        assert (loaded.ingress.port, loaded.public_url) == (int(published), f"http://localhost:{published}")
        for url in (loaded.prometheus.url, loaded.alertmanager.url, loaded.ntfy.url):
            assert _listens(url)


def test_it_ends_before_it_is_killed() -> None:
    grace = settings.Settings().worker.grace.total_seconds()
    for name in ("tracekit", "worker"):
        assert services()[name]["stop_grace_period"] == f"{2 * grace + 10:.0f}s"
        assert services()[name]["init"], "somebody reaps what a handler leaves"


def test_the_image_is_a_user_of_its_own_with_nothing_to_write_but_its_data() -> None:
    for service in ours().values():
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert [mount["target"] for mount in service["volumes"] if mount["type"] == "volume"] == ["/var/lib/tracekit"]
    assert re.search(r"^USER 10001:10001$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    ran = subprocess.run([hadolint(), "Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (0, "")


def test_the_builder_gets_what_the_dockerfile_copies_and_what_the_package_is_made_of() -> None:
    kept = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"}
    copied: set[str] = set()
    for line in (ROOT / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            copied |= set(line.split()[1:-1])
    assert copied == kept
    assert all((ROOT / name).exists() for name in copied)
    assert {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "src"} == copied, "pip asks for these"


# --- who finds whom ---------------------------------------------------------------------------------------------------


def _ports() -> dict[str, set[int]]:
    """Where each service listens, by its name on the network, as its own configuration has it."""
    receiver = config("otel-collector/config.yaml")["receivers"]["otlp"]["protocols"]
    tempo, loki = config("tempo/config.yaml"), config("loki/config.yaml")
    worker = services()["worker"]["command"]
    metrics = config("otel-collector/config.yaml")["service"]["telemetry"]["metrics"]["readers"][0]["pull"]
    return {
        "postgres": {5432},
        "tracekit": {settings.Settings().ingress.port},
        "worker": {int(worker[worker.index("--metrics-port") + 1])},
        "otel-collector": {
            *(int(one["endpoint"].rpartition(":")[2]) for one in receiver.values()),
            metrics["exporter"]["prometheus"]["port"],
        },
        "tempo": {
            tempo["server"]["http_listen_port"],
            int(tempo["distributor"]["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"].rpartition(":")[2]),
        },
        "loki": {loki["server"]["http_listen_port"]},
        "prometheus": {9090},
        "alertmanager": {9093},
        "ntfy": {80},
        "grafana": {3000},
    }


def _listens(address: str) -> bool:
    """Whether somebody listens where a URL, or a `host:port`, leads to."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    return parts.hostname in services() and (parts.port or 80) in _ports()[parts.hostname]


def test_every_address_leads_to_a_service_that_listens_there() -> None:
    collector = config("otel-collector/config.yaml")
    addresses = [
        *(source["url"] for source in config("grafana/provisioning/datasources/tracekit.yaml")["datasources"]),
        *(exporter["endpoint"] for exporter in collector["exporters"].values()),
        *(service["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"] for service in ours().values()),
        *re.findall(r"(?<=url: )http://[^/]+", (ROOT / "alerts" / "alertmanager.yaml").read_text()),
    ]
    assert len(addresses) > 8
    assert [address for address in addresses if not _listens(address)] == []
    for service in services().values():
        for port in service.get("ports", []):
            (name,) = [name for name, one in services().items() if one is service]
            assert int(port["target"]) in _ports()[name]


def test_prometheus_scrapes_every_service_that_shows_metrics() -> None:
    scraped: set[str] = set()
    for job in config("prometheus/prometheus.yml")["scrape_configs"]:
        for static in job["static_configs"]:
            scraped |= {target.replace("localhost", job["job_name"]) for target in static["targets"]}
        for found in job.get("dns_sd_configs", []):
            scraped |= {f"{name}:{found['port']}" for name in found["names"]}
    assert [address for address in scraped if not _listens(address)] == []
    assert scraped == {"tracekit:8420", "worker:9101", *(f"{name}:{port}" for name, port in SCRAPED.items())}


def test_promtool_takes_the_prometheus_configuration(tmp_path: Path) -> None:
    make_secrets(tmp_path)
    replaced = _replaced(DEPLOY / "prometheus" / "prometheus.yml", tmp_path)
    ran = subprocess.run([require_program("promtool"), "check", "config", replaced], capture_output=True, text=True,
                         check=False)  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert "1 rule files found" in ran.stdout, "and the rules that are mounted with it"


def test_amtool_takes_the_alertmanager_configuration() -> None:
    mount = mounted(services()["alertmanager"])
    ran = subprocess.run([require_program("amtool"), "check-config", mount["/etc/alertmanager/alertmanager.yaml"]],
                         capture_output=True, text=True, check=False)  # fmt: skip
    assert ran.returncode == 0, ran.stderr


def _replaced(file: Path, directory: Path) -> Path:
    """A copy whose paths lead to files of this machine."""
    text = file.read_text().replace("/run/secrets", str(directory / "secrets"))
    copy = directory / file.name
    copy.write_text(text.replace("/etc/prometheus/rules", str(ROOT / "alerts")))
    return copy


def test_the_collectors_pipelines_are_whole_and_nothing_is_lost_on_the_way() -> None:
    collector = config("otel-collector/config.yaml")
    pipelines: dict[str, Any] = collector["service"]["pipelines"]
    assert set(pipelines) == {"traces", "logs"}
    for kind in ("receivers", "processors", "exporters"):
        used = {name for pipeline in pipelines.values() for name in pipeline[kind]}
        assert used == set(collector[kind]), kind
    assert collector["service"]["extensions"] == list(collector["extensions"])
    for pipeline in pipelines.values():
        assert pipeline["processors"][0] == "memory_limiter", "it must be the first, so that senders are told"
    # A queue would answer for a span that Tempo never gets, and tracekit would drop it.
    assert pipelines["traces"]["processors"] == ["memory_limiter"]
    (tempo,) = pipelines["traces"]["exporters"]
    assert collector["exporters"][tempo]["sending_queue"] == {"enabled": False}


# --- Grafana ----------------------------------------------------------------------------------------------------------


def _sources() -> dict[str, Any]:
    file = config("grafana/provisioning/datasources/tracekit.yaml")
    return {source["uid"]: source for source in file["datasources"]}


def test_d2_the_data_sources_are_those_of_the_dashboards_and_lead_to_one_another() -> None:
    sources = _sources()
    assert {uid: source["type"] for uid, source in sources.items()} == {
        "tracekit-prometheus": "prometheus",
        "tracekit-postgres": "grafana-postgresql-datasource",
        "tracekit-tempo": "tempo",
        "tracekit-loki": "loki",
    }
    prometheus, tempo, loki = (sources[f"tracekit-{name}"]["jsonData"] for name in ("prometheus", "tempo", "loki"))
    assert [one["datasourceUid"] for one in prometheus["exemplarTraceIdDestinations"]] == ["tracekit-tempo"]
    assert tempo["tracesToLogsV2"]["datasourceUid"] == "tracekit-loki"
    assert tempo["tracesToMetrics"]["datasourceUid"] == "tracekit-prometheus"
    assert [one["datasourceUid"] for one in loki["derivedFields"]] == ["tracekit-tempo"]


def test_d2_every_dashboard_looks_for_a_data_source_that_is_there() -> None:
    dashboards = sorted((ROOT / "dashboards").glob("*.json"))
    assert len(dashboards) == 5
    types = {uid: source["type"] for uid, source in _sources().items()}
    for file in dashboards:
        variables = yaml.safe_load(file.read_text())["templating"]["list"]
        chosen = {one["query"]: one["current"]["value"] for one in variables if one["type"] == "datasource"}
        assert chosen, file.name
        assert {uid: types[uid] for uid in chosen.values()} == {uid: kind for kind, uid in chosen.items()}, file.name


def test_d2_the_dashboards_are_read_from_where_they_are_mounted() -> None:
    (provider,) = config("grafana/provisioning/dashboards/tracekit.yaml")["providers"]
    grafana = services()["grafana"]
    assert mounted(grafana)[provider["options"]["path"]] == ROOT / "dashboards"
    home = Path(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert str(home.parent) == provider["options"]["path"]
    assert (ROOT / "dashboards" / home.name).exists()
    assert provider["folderUid"] == "tracekit"
