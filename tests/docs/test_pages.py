"""The other pages: their commands run, their snippets load, and their tables agree with the code."""

from __future__ import annotations

import configparser
import re
import tomllib
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, SecretStr

from tests.docs import reference
from tests.docs.console import Command, Shell, commands
from tests.docs.running import run_document
from tests.support.postgres import ThrowawayServer
from tracekit import config
from tracekit.workers import rules

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLE = DOCS / "tracekit.example.toml"


def blocks(page: str, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE)


def test_getting_started_works_as_printed(tmp_path: Path) -> None:
    run_document(DOCS / "getting-started.md", tmp_path)


def test_c3_c4_the_story_of_cost_works_as_printed(tmp_path: Path) -> None:
    run_document(DOCS / "cost.md", tmp_path)


def test_operations_commands_work_on_a_database_of_ones_own(tmp_path: Path, postgres: ThrowawayServer) -> None:
    dsn = postgres.create_database()
    try:
        run_document(DOCS / "operations.md", tmp_path, TRACEKIT_DSN=dsn)
    finally:
        postgres.drop_database(dsn)


def test_the_mode_of_the_page_is_found_and_served(tmp_path: Path) -> None:
    (code,) = blocks("writing-a-mode.md", "python")
    entry_point, route = blocks("writing-a-mode.md", "toml")
    package = tmp_path / "site"
    info = package / "my_package-1.0.dist-info"
    info.mkdir(parents=True)
    (package / "my_package.py").write_text(code)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (named,) = tomllib.loads(entry_point)["project"]["entry-points"].items()
    entries = "\n".join(f"{name} = {value}" for name, value in named[1].items())
    (info / "entry_points.txt").write_text(f"[{named[0]}]\n{entries}\n")
    rules_file = tmp_path / "rules.toml"
    rules_file.write_text(route)
    page = tmp_path / "page.md"
    page.write_text(
        "```console\n"
        "$ tracekit worker > worker.log 2>&1 &\n"
        '$ tracekit submit "translate: good night" --follow\n'
        "…translator: attempt 1 did translate\n"
        "…translator: task done: In French: bonne nuit\n"
        "✔ done in 1 s\n"
        "```\n"
    )
    run_document(page, tmp_path, PYTHONPATH=str(package), TRACEKIT_RULES=str(rules_file))


# --- configuration ----------------------------------------------------------------------------------------------------


def test_the_table_of_settings_is_that_of_the_code() -> None:
    text = reference.PAGE.read_text()
    assert text == reference.page(text), "run: python -m tests.docs.reference"


def test_the_example_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RENEE_TOKEN", "something")
    settings = config.load(EXAMPLE)
    assert [token.surface for token in settings.tokens] == ["alertmanager", "android"]
    assert settings.worker == config.WorkerSettings()


def test_the_example_has_every_setting_with_its_default(tmp_path: Path) -> None:
    uncommented = re.sub(r"^#(?=\w+ = )", "", EXAMPLE.read_text(), flags=re.MULTILINE)
    values = tomllib.loads(uncommented)
    full = tmp_path / "full.toml"
    full.write_text(uncommented)
    settings = config.load(full)
    for name, _, model in reference.sections():
        section = values.get(name, {}) if name else values
        loaded = getattr(settings, name) if name else settings
        for field_name, field in model.model_fields.items():
            if reference.is_section(field):
                continue
            assert field_name in section, f"{name}.{field_name} is not in the example"
            default = field.get_default(call_default_factory=True)
            if not is_empty(default) and field_name not in ("tokens", "models", "prices"):
                assert getattr(loaded, field_name) == default, f"{name}.{field_name}"


def is_empty(default: Any) -> bool:
    return default is None or default in ("", ()) or (isinstance(default, SecretStr) and not default.get_secret_value())


@pytest.mark.parametrize("snippet", blocks("operations.md", "toml"))
def test_snippets_of_the_configuration_load(snippet: str, tmp_path: Path) -> None:
    file = tmp_path / "tracekit.toml"
    file.write_text(snippet)
    assert isinstance(config.load(file), BaseModel)


def test_the_rules_of_the_pages_load(tmp_path: Path) -> None:
    page = (DOCS / "getting-started.md").read_text()
    (text,) = (command.text for command in commands(page) if "rules.toml <<" in command.text)
    file = tmp_path / "rules.toml"
    file.write_text("\n".join(text.splitlines()[1:-1]))
    assert rules.load(file).plans[0].name == "good night"


def test_the_unit_file_is_one(tmp_path: Path) -> None:
    (unit,) = blocks("operations.md", "ini")
    parsed = configparser.RawConfigParser(strict=False)
    parsed.optionxform = str  # type: ignore[assignment, method-assign]
    parsed.read_string(unit)
    assert parsed["Service"]["ExecStart"].endswith("tracekit up")
    assert parsed["Service"]["KillMode"] == "process", "the embedded server would be killed with its last user"
    stop = timedelta(seconds=int(parsed["Service"]["TimeoutStopSec"]))
    assert stop > config.WorkerSettings().grace, "systemd would kill what still drains"


# --- the runner itself ------------------------------------------------------------------------------------------------


def test_the_runner_sees_what_is_not_as_printed(tmp_path: Path) -> None:
    printed = "01M854EZBEA17FRWPB1ENEPH6V took 3.2 s"
    with Shell(tmp_path, {"PATH": "/usr/bin:/bin"}) as shell:
        shell.run(Command(f"echo {printed}", ("01M854NC3P8Q5R7S9T1V3W5X7Y took 17 ms",), 1))
        # From then on the id stands for the one that was seen.
        shell.run(Command("echo 01M854NC3P8Q5R7S9T1V3W5X7Y", ("01M854NC3P8Q5R7S9T1V3W5X7Y",), 2))
        with pytest.raises(AssertionError, match="lacks: something"):
            shell.run(Command("echo nothing", ("something",), 3))
        with pytest.raises(AssertionError, match="lacks: 01M854NC3P8Q5R7S9T1V3W5X7Y"):
            shell.run(Command("echo 01M854EXB1YSV95DYPE40HERBX", ("01M854NC3P8Q5R7S9T1V3W5X7Y",), 4))
        with pytest.raises(AssertionError, match="exit code 3"):
            shell.run(Command("(exit 3)", (), 5))
