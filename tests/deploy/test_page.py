"""docs/observability.md: its commands are ones that there are, its snippets are taken, its addresses are right."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.deploy.project import NAMES, ROOT, compose, make_secrets, parse_command, project, services
from tests.support.programs import require_program
from tracekit.cli.commands import cli

PAGE = (ROOT / "docs" / "observability.md").read_text()


def _blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def _commands() -> list[list[str]]:
    """Every command line of the page, in words: of the blocks, and of the text and the tables."""
    lines = [line for block in _blocks("sh") for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`((?:docker compose|rm|\./deploy)[^`…]* [^`…]*)`", PAGE)
    words = [shlex.split(part, comments=True) for line in lines for part in line.split("&&")]
    # Variables before a command, and `export`, are the shell's.
    return [[word for word in line if not re.match(r"[A-Z_]+=", word)] for line in words if line]


def test_its_commands_of_tracekit_are_ones_that_it_has() -> None:
    inside = [line[4:] for line in _commands() if line[:3] == ["docker", "compose", "exec"]]
    lines = [line[1:] for line in (*_commands(), *inside) if line[:1] == ["tracekit"]]
    assert len(lines) >= 15
    for line in lines:
        parse_command(cli, line)


def test_its_commands_of_compose_name_services_that_there_are() -> None:
    lines = [line for line in _commands() if line[:2] == ["docker", "compose"]]
    assert len(lines) >= 15
    for line in lines:
        verb, rest = line[2], line[3:]
        assert verb in {"up", "down", "ps", "exec", "cp", "restart", "stop", "logs"}, line
        help = compose(verb, "--help").stdout
        if verb != "exec":
            assert [one for one in rest if one.startswith("--") and f"{one} " not in f"{help} "] == [], line
        if verb == "exec":
            assert rest[0] in NAMES, line
        elif verb in ("restart", "stop", "logs"):
            assert set(rest) <= set(NAMES), line


def test_the_addresses_that_it_shows_are_published() -> None:
    published = {port["published"] for service in services().values() for port in service.get("ports", [])}
    before = PAGE.split("## You have Grafana")[0]
    assert set(re.findall(r"localhost:(\d+)", before)) == published
    (needed,) = re.findall(r"these ports of this machine: ([\d, and\n]+)\.", before)
    assert set(re.findall(r"\d+", needed)) == published


def test_the_files_that_it_names_are_there() -> None:
    for link in re.findall(r"\]\((?!http|#)([^)#]+)", PAGE):
        assert (ROOT / "docs" / link).exists(), link
    named = set(re.findall(r"`(?:rm )?secrets/(\w+)", PAGE))
    assert named <= set(project()["secrets"])


def test_compose_takes_the_override_beside_the_project(tmp_path: Path) -> None:
    (snippet,) = [block for block in _blocks("yaml") if block.startswith("services:")]
    make_secrets(tmp_path)
    (tmp_path / "docker-compose.yml").write_text((ROOT / "docker-compose.yml").read_text())
    (tmp_path / "docker-compose.override.yml").write_text(snippet)
    ran = compose("config", directory=tmp_path)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "/run/secrets/home_assistant_token" in ran.stdout
    assert "/run/secrets/tracekit_dsn" in ran.stdout, "and what the worker had before"


def test_promtool_takes_what_it_says_of_scraping(tmp_path: Path) -> None:
    (snippet,) = [block for block in _blocks("yaml") if block.startswith("rule_files:")]
    (tmp_path / "token").write_text("a-token")
    (tmp_path / "prometheus.yml").write_text(
        snippet.replace("/etc/prometheus/tracekit.token", str(tmp_path / "token")).replace(
            "/etc/prometheus/tracekit/", f"{ROOT}/alerts/"
        )
    )
    ran = subprocess.run(
        [require_program("promtool"), "check", "config", tmp_path / "prometheus.yml"], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert "1 rule files found" in ran.stdout


@pytest.mark.parametrize(
    "panel", ["Outcome", "Hops", "Trace", "Events", "Attempts and errors", "Logs", "Tokens and cost"]
)
def test_d2_the_panels_that_it_tells_of_are_on_the_page_of_a_task(panel: str) -> None:
    assert f'"title": "{panel}"' in (ROOT / "dashboards" / "task.json").read_text()
    assert panel in PAGE
