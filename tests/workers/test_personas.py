"""Persona files, as Claude Code's agents have them, and what is wrong with bad ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tracekit.workers.personas import MAX_FILE, Persona, PersonaError, Personas, read_persona

BUTLER = """---
name: butler
description: Keeps the house in order.
tools: Read, Grep , Bash(git log:*)
model: sonnet
color: blue
---

You are the butler.

---
Speak softly.
"""


def test_a_persona_with_everything(tmp_path: Path) -> None:
    (tmp_path / "b.md").write_text(BUTLER)
    persona = Personas.load(tmp_path).get("butler")
    assert persona == Persona(
        name="butler",
        description="Keeps the house in order.",
        tools=("Read", "Grep", "Bash(git log:*)"),
        model="sonnet",
        prompt="You are the butler.\n\n---\nSpeak softly.",
    )


def test_tools_may_be_a_list_and_lines_may_end_as_on_windows(tmp_path: Path) -> None:
    file = tmp_path / "cook.md"
    file.write_bytes("\ufeff---\r\nname: cook\r\ntools:\r\n  - Read\r\n---\r\nCook.\r\n".encode())
    assert read_persona(file) == Persona(name="cook", tools=("Read",), prompt="Cook.")


def test_one_without_a_file_has_only_its_name(tmp_path: Path) -> None:
    for personas in (Personas.load(None), Personas.load(tmp_path)):
        assert personas.get("gardener") == Persona(name="gardener")
        assert personas.names == []
    with pytest.raises(PersonaError, match="cannot be a persona's name"):
        Personas.load(None).get("No Such Name")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("You are nobody.", "has no front matter"),
        ("", "has no front matter"),
        ("---\nname: x\n", "has no end"),
        ("---\nname: [\n---\n", "is not YAML in line"),
        ("---\n- name\n---\n", "must be a mapping"),
        ("---\ndescription: x\n---\n", "name: Field required"),
        ("---\nname: Not A Name\n---\n", "name: String should match"),
        ("---\nname: 7\n---\n", "name: Input should be a valid string"),
        ("---\nname: x\ntools: {a: b}\n---\n", "tools: "),
        ('---\nname: x\nmodel: "a\\0b"\n---\n', "model: Value error, must not contain NUL"),
        (f"---\nname: x\n---\n{'x' * MAX_FILE}", "is larger than"),
    ],
)
def test_a_bad_file_is_named_with_what_is_wrong(tmp_path: Path, text: str, fault: str) -> None:
    file = tmp_path / "odd.md"
    file.write_text(text)
    with pytest.raises(PersonaError) as refused:
        read_persona(file)
    assert str(refused.value).startswith("odd.md: ")
    assert fault in str(refused.value)


def test_all_faults_of_a_directory_are_listed_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text(BUTLER)
    (tmp_path / "b.md").write_text(BUTLER)
    (tmp_path / "c.md").write_bytes(b"---\nname: \xff\n---\n")
    (tmp_path / "d.md").mkdir()
    with pytest.raises(PersonaError) as refused:
        Personas.load(tmp_path)
    for fault in ("b.md: a.md has the name 'butler' already", "c.md: is not UTF-8", "d.md: cannot be read"):
        assert fault in str(refused.value)


def test_a_directory_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(PersonaError, match="there is no directory of personas"):
        Personas.load(tmp_path / "absent")
