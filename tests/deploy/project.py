"""docker-compose.yml as Docker Compose itself understands it, and what it mounts."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
NAMES = sorted(yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"])
"""Of the services."""

Service = dict[str, Any]


def hadolint() -> str:
    """hadolint, which came into the environment as a wheel."""
    return _installed(Path(sys.executable).with_name("hadolint"))


def _docker_compose() -> str:
    # Its wrapper in bin/ ends with 0 whatever happened.
    package = find_spec("compose")
    return _installed(Path(package.origin).with_name("docker-compose") if package and package.origin else Path("/none"))


def _installed(program: Path) -> str:
    if not program.exists():
        pytest.skip(f"{program.name} is not in the environment: make venv, on Linux on x86-64")
    return str(program)


def compose(*arguments: str, directory: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run Docker Compose, which needs no Docker to read a project. No variable and no `.env` of ours plays a part."""
    return subprocess.run(
        [_docker_compose(), "--project-directory", str(directory), *arguments],
        cwd=directory,
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )


@cache
def project() -> dict[str, Any]:
    """The whole project, with everything merged, made absolute and defaulted."""
    ran = compose("--file", str(ROOT / "docker-compose.yml"), "config", "--format", "json")
    assert (ran.returncode, ran.stderr) == (0, "")
    read: dict[str, Any] = _unescaped(json.loads(ran.stdout))
    return read


def services() -> dict[str, Service]:
    found: dict[str, Service] = project()["services"]
    return found


def ours() -> dict[str, Service]:
    """The services that run tracekit."""
    return {name: service for name, service in services().items() if "build" in service}


def _unescaped(value: Any) -> Any:
    match value:
        case str():
            return value.replace("$$", "$")
        case list():
            return [_unescaped(one) for one in value]
        case dict():
            return {name: _unescaped(one) for name, one in value.items()}
        case _:
            return value


def mounted(service: Service) -> dict[str, Path]:
    """Where in the container, and which file or directory of the repository: the bind mounts."""
    return {mount["target"]: Path(mount["source"]) for mount in service.get("volumes", []) if mount["type"] == "bind"}


def config(name: str) -> Any:
    """A mounted YAML file, by its path below deploy."""
    return yaml.safe_load((DEPLOY / name).read_text())


def secrets_said(text: str) -> set[str]:
    """The files with secrets that a text names, but for its comments, by their paths in a container."""
    said = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    return set(re.findall(r"/(?:run|etc/alertmanager)/secrets/[\w-]+", said))


def make_secrets(directory: Path) -> subprocess.CompletedProcess[str]:
    """Run deploy/secrets.sh as it would in a checkout at `directory`. They are in `directory/secrets` then."""
    (directory / "deploy").mkdir(parents=True, exist_ok=True)
    script = shutil.copy2(DEPLOY / "secrets.sh", directory / "deploy")
    return subprocess.run([script], capture_output=True, text=True, check=True)


def parse_command(command: click.Command, arguments: list[str]) -> None:
    """Read a command line as the program does, down to the command that would run, and run nothing."""
    with command.make_context(command.name, arguments) as context:
        if isinstance(command, click.Group):
            rest = [*context._protected_args, *context.args]
            _, found, left = command.resolve_command(context, rest)
            assert found is not None
            parse_command(found, left)
