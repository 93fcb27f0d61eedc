"""`note.write`: below its directory, whole or not at all, and never over another note."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.workers.modes.driving import Driver
from tracekit.workers.capabilities import Refused, UnknownCapability
from tracekit.workers.capabilities.note import WriteNote, _read, _write

NOTE = WriteNote()


def written(root: Path, path: str, text: str = "hello") -> bytes:
    _write(root, NOTE.parse({"path": path, "text": text}))
    return (root / path).read_bytes()


@pytest.mark.parametrize(
    "path",
    [
        "../a.md",
        "/etc/a.md",
        "a/../../b.md",
        "a//b.md",
        ".a.md",
        "a/.git/b.md",
        "a\\b.md",
        "a\x00.md",
        "a.txt",
        "./a.md",
        "a/./b.md",
        ".md",
        "",
        "\n.md",
        "x" * 300 + ".md",
    ],
)
def test_paths_that_lead_elsewhere_are_refused(path: str) -> None:
    with pytest.raises(UnknownCapability, match=r"note\.write cannot take"):
        NOTE.parse({"path": path, "text": "x"})


@given(st.text(min_size=1, max_size=60))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_path_is_accepted_lies_below_the_directory(tmp_path: Path, path: str) -> None:
    try:
        note = NOTE.parse({"path": f"{path}.md", "text": "x"})
    except UnknownCapability:
        return
    root = tmp_path / "notes"
    assert (root / note.path).resolve().is_relative_to(root.resolve())
    assert (root / note.path).resolve() != root.resolve()


def test_a_link_that_leads_out_is_not_followed(tmp_path: Path) -> None:
    root, outside = tmp_path / "notes", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (root / "inbox").symlink_to(outside)
    (root / "file.md").symlink_to(outside / "secret.md")
    for path in ("inbox/a.md", "inbox/new/folder/a.md", "file.md"):
        with pytest.raises(Refused):
            written(root, path)
    assert list(outside.iterdir()) == []
    assert _read(root, NOTE.parse({"path": "inbox/a.md", "text": "x"})) == {"inbox/a.md": {"sha256": None}}


def test_the_same_note_twice_is_one_and_another_under_its_name_is_refused(tmp_path: Path) -> None:
    assert written(tmp_path, "a/b.md") == b"hello"
    assert written(tmp_path, "a/b.md") == b"hello"
    with pytest.raises(Refused, match="says something else"):
        written(tmp_path, "a/b.md", "other")
    assert (tmp_path / "a/b.md").read_bytes() == b"hello"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.md"]


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    written(tmp_path, "a.md")
    with pytest.raises(Refused, match="is a file"):
        written(tmp_path, "a.md/b.md")


def test_of_two_at_once_one_is_written_whole(tmp_path: Path) -> None:
    texts = [str(number) * 60_000 for number in range(8)]
    refused: list[Refused] = []

    def write(text: str) -> None:
        try:
            written(tmp_path, "a.md", text)
        except Refused as error:
            refused.append(error)

    threads = [threading.Thread(target=write, args=[text]) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 7
    assert (tmp_path / "a.md").read_text() in texts


async def test_a_note_from_intent_to_file(driver: Driver) -> None:
    task = await driver.do("Note: the boiler needs water\nevery November")
    reviewed = await driver.reviewed()
    assert reviewed.outcome == "done"
    [file] = (driver.settings.notes_dir / "inbox").iterdir()
    assert file.read_text() == "the boiler needs water\nevery November\n"
    assert file.name.endswith(f"-the_boiler_needs_water_every_november-{task.id}.md")


async def test_a_note_that_was_changed_behind_its_back_has_failed(driver: Driver) -> None:
    await driver.file("note: remember")
    await driver.run(until=("historian", "reviewer"))
    [file] = (driver.settings.notes_dir / "inbox").iterdir()
    file.write_text("forget")
    await driver.run()
    reviewed = await driver.reviewed()
    assert reviewed.outcome == "failed"
    assert "sha256 should be" in reviewed.steps[0].detail
