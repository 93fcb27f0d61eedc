"""The README's commands work as printed, and what it shows is what tracekit prints.

Blocks of ```sh need the network, or change the machine: their commands are named in other tests or in the Makefile.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.docs.records import drawn
from tests.docs.running import run_document
from tests.support.programs import require_program
from tracekit.cli.follow import EXIT_CODES
from tracekit.config import load

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"


def test_its_commands_work_as_printed(tmp_path: Path) -> None:
    run_document(README, tmp_path)


@pytest.mark.parametrize("name", ["kill", "lock"])
def test_the_trees_are_what_follow_prints_of_those_tasks(name: str) -> None:
    assert drawn(name) in README.read_text()


def test_its_first_screen_says_what_it_is_and_how_to_see_it() -> None:
    first = README.read_text().splitlines()[:45]
    assert "make demo" in "\n".join(first)
    assert "make test" in "\n".join(first)
    assert any(line.startswith("✔ done") for line in first)


def test_alertmanager_takes_its_snippet(tmp_path: Path) -> None:
    amtool = require_program("amtool")
    (snippet,) = re.findall(r"```yaml\n(route:.*?)```", README.read_text(), re.DOTALL)
    config = tmp_path / "alertmanager.yml"
    config.write_text(snippet)
    done = subprocess.run([amtool, "check-config", config], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_lines_to_be_oneself_load(tmp_path: Path) -> None:
    (snippet,) = re.findall(r"```toml\n(.*?)```", README.read_text(), re.DOTALL)
    file = tmp_path / "tracekit.toml"
    file.write_text(snippet)
    assert load(file).role(load(file).cli_principal) == "operator"
    assert len(snippet.splitlines()) == 2


def test_its_exit_codes_are_those_of_follow() -> None:
    table = README.read_text().split("## Exit codes")[1].split("##")[0]
    listed = dict(re.findall(r"\| (\d+) \| (\w+)[^|]*\|$", table, re.MULTILINE))
    assert listed == {str(code): state for state, code in EXIT_CODES.items()}


def test_make_knows_the_commands_that_it_names() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"^make ([a-z]+)", README.read_text(), re.MULTILINE)):
        assert f"\n{target}: " in makefile


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_links_lead_somewhere(page: str) -> None:
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / page).read_text()):
        if not link.startswith("http"):
            assert ((ROOT / page).parent / link).exists(), link


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_commands_and_options_exist(page: str) -> None:
    """Also those in prose and in blocks that are not run."""
    said = set(re.findall(r"(?<![\w/.-])tracekit ((?:[a-z]+ ){0,2}[a-z]+)((?: --[a-z-]+)*)", (ROOT / page).read_text()))
    from tracekit.cli.commands import cli

    for words, options in said:
        first, *others = words.split()
        if first not in cli.commands:
            continue
        command = cli.commands[first]
        if others and hasattr(command, "commands") and others[0] in command.commands:
            command = command.commands[others[0]]
        known = {name for parameter in command.params for name in parameter.opts} | {"--help"}
        for option in options.split():
            assert option in known, f"tracekit {words} {option}"
