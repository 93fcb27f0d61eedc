"""The package as it is installed: its version, its type marker, and the pinned set."""

import tomllib
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import tracekit
from tracekit.errors import TracekitError

ROOT = Path(__file__).parent.parent


def project() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return table


def declared() -> list[Requirement]:
    table = project()
    return [Requirement(line) for line in table["dependencies"] + table["optional-dependencies"]["dev"]]


def constraints() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(requirement.name): requirement for requirement in found}


def test_version_is_the_projects() -> None:
    assert tracekit.__version__ == project()["version"]


def test_package_says_that_it_is_typed() -> None:
    assert resources.files("tracekit").joinpath("py.typed").is_file()


@pytest.mark.parametrize("requirement", declared(), ids=lambda requirement: requirement.name)
def test_constraints_pin_what_the_project_asks_for(requirement: Requirement) -> None:
    pin = constraints()[canonicalize_name(requirement.name)]
    (exactly,) = pin.specifier
    assert exactly.operator == "=="
    assert requirement.specifier.contains(exactly.version, prereleases=True)


def test_everything_installed_is_pinned() -> None:
    """Follow the requirements of what is installed: nothing may come in at a version of its own."""
    pins = constraints()
    seen: set[tuple[str, str]] = set()
    todo = [("tracekit", ""), ("tracekit", "dev")]
    while todo:
        name, extra = todo.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        for line in metadata.requires(name) or []:
            requirement = Requirement(line)
            if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
                continue
            needed = canonicalize_name(requirement.name)
            todo += [(needed, wanted) for wanted in ("", *requirement.extras)]
    installed = {name for name, _ in seen} - {"tracekit"}
    strays = {
        name: metadata.version(name)
        for name in installed
        if name not in pins or metadata.version(name) not in pins[name].specifier
    }
    assert not strays


def test_python_floor_is_what_the_tools_check_for() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert SpecifierSet(settings["project"]["requires-python"]) == SpecifierSet(">=3.11")
    assert settings["tool"]["mypy"]["python_version"] == "3.11"
    assert settings["tool"]["ruff"]["target-version"] == "py311"


def test_error_carries_its_hint_apart_from_its_message() -> None:
    error = TracekitError("the database is away", hint="set TRACEKIT_DSN")
    assert (str(error), error.hint, error.exit_code) == (
        "the database is away",
        "set TRACEKIT_DSN",
        1,
    )
    assert TracekitError("no hint").hint == ""
