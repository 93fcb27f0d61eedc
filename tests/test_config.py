"""The configuration: what cannot be read is said, in a line that quotes no value."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import pytest

from tracekit.config import ConfigError, Settings, load


@pytest.mark.parametrize("name", ["TRACEKIT_WORKER", "TRACEKIT_TOKENS", "TRACEKIT_PRINCIPALS"])
def test_a_variable_that_is_no_json_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRACEKIT_CONFIG", raising=False)
    monkeypatch.setenv(name, '{"sha256": "hunter2')
    with pytest.raises(ConfigError) as caught:
        load()
    assert name.removeprefix("TRACEKIT_").lower() in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_the_data_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACEKIT_HOME", "/srv/tracekit")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert Settings().data_home == Path("/srv/tracekit")
    monkeypatch.delenv("TRACEKIT_HOME")
    assert Settings().data_home == Path("/var/lib/tracekit" if os.geteuid() == 0 else "/data/tracekit")


def test_a_user_without_a_home_directory_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("TRACEKIT_HOME", raising=False)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(ConfigError, match="user 4711 has no home directory") as caught:
        _ = Settings().data_home
    assert "TRACEKIT_HOME" in caught.value.hint


@pytest.mark.parametrize("given", ["30", "30.0", "PT30S"])
def test_a_variable_says_a_duration_as_the_file_does(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRACEKIT_CONFIG", raising=False)
    monkeypatch.setenv("TRACEKIT_WORKER__GRACE", given)
    assert load().worker.grace == timedelta(seconds=30)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("vualt = '/v'", "vualt: unknown setting, did you mean vault?"),
        ("heartbeat = 3", "heartbeat: unknown setting, did you mean worker.heartbeat?"),
        ("[ntfy]\ntopics = 'x'", "ntfy.topics: unknown setting, did you mean topic?"),
        ("[[tokens]]\nsurfaces = 'x'", "tokens.0.surfaces: unknown setting, did you mean surface?"),
        ("[principals.ann]\nroll = 'operator'", "principals.ann.roll: unknown setting, did you mean role?"),
        ("zzzz = 3", "zzzz: unknown setting"),
    ],
)
def test_a_setting_that_is_not_there_is_named_with_one_that_is(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "tracekit.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert f"{said};" in f"{caught.value};"
