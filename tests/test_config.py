"""The configuration: what cannot be read is said, in a line that quotes no value."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from pathlib import Path

import pytest

from tracekit.config import ConfigError, Settings, Token, load
from tracekit.ingress.auth import Tokens


@pytest.mark.parametrize("name", ["TRACEKIT_WORKER", "TRACEKIT_TOKENS", "TRACEKIT_PRINCIPALS"])
def test_a_variable_that_is_no_json_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRACEKIT_CONFIG", raising=False)
    monkeypatch.setenv(name, '{"sha256": "hunter2')
    with pytest.raises(ConfigError) as caught:
        load()
    assert name.removeprefix("TRACEKIT_").lower() in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_credential_in_a_model_s_address_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRACEKIT_CONFIG", raising=False)
    models = {"cloud": {"base_url": "https://models.example/v1?api_key=hunter2", "model": "m-1"}}
    monkeypatch.setenv("TRACEKIT_MODELS", json.dumps(models))
    with pytest.raises(ConfigError, match="base_url") as caught:
        load()
    assert "hunter2" not in str(caught.value)


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


def test_a_value_may_stand_in_a_file_that_a_variable_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TRACEKIT_CONFIG", raising=False)
    for name, value in {"DSN": "host=db password=hunter2\n", "NTFY__TOKEN": "tk_1", "WORKER__LEASE": "90\n"}.items():
        file = tmp_path / name
        file.write_text(value)
        monkeypatch.delenv(f"TRACEKIT_{name}", raising=False)
        monkeypatch.setenv(f"TRACEKIT_{name}_FILE", str(file))
    settings = load()
    assert settings.dsn.get_secret_value() == "host=db password=hunter2"
    assert settings.ntfy.token.get_secret_value() == "tk_1"
    assert settings.worker.lease == timedelta(seconds=90)


def test_a_variable_of_somebody_elses_that_ends_alike_is_let_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRACEKIT_CONFIG", raising=False)
    monkeypatch.setenv("TRACEKIT_PID_FILE", "/run/absent.pid")
    assert load().worker.lease == timedelta(seconds=60)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"TRACEKIT_DSN": "hunter2", "TRACEKIT_DSN_FILE": "there"}, "TRACEKIT_DSN and TRACEKIT_DSN_FILE are both set"),
        ({"TRACEKIT_DSN_FILE": "absent"}, "TRACEKIT_DSN_FILE: cannot read absent: No such file or directory"),
        ({"TRACEKIT_DSN_FILE": "empty"}, "TRACEKIT_DSN_FILE: empty is empty"),
        ({"TRACEKIT_DSN_FILE": "huge"}, "TRACEKIT_DSN_FILE: huge has more than 1,048,576 characters"),
        ({"TRACEKIT_DSN_FILE": "."}, "TRACEKIT_DSN_FILE: cannot read .: Is a directory"),
        ({"TRACEKIT_DSN_FILE": "binary"}, "TRACEKIT_DSN_FILE: cannot read binary: it is not text in UTF-8"),
        ({"TRACEKIT_NTFY__TOPICS_FILE": "there"}, "ntfy.topics: unknown setting, did you mean topic?"),
    ],
)
def test_a_file_that_cannot_give_a_value_is_named_and_not_quoted(
    variables: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("TRACEKIT_CONFIG", raising=False)
    monkeypatch.delenv("TRACEKIT_DSN", raising=False)
    (tmp_path / "there").write_text("hunter2")
    (tmp_path / "binary").write_bytes(b"hunter2 \xff")
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "huge").write_text("hunter2" * 2**18)
    monkeypatch.chdir(tmp_path)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as caught:
        load()
    assert said in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_p1_a_token_comes_from_one_place(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give one of sha256, env and file"):
        Token(surface="shell", principal="rob", env="TOKEN", file=tmp_path / "token")
    with pytest.raises(ValueError, match="give one of sha256, env and file"):
        Token(surface="shell", principal="rob")


def test_p1_a_token_in_a_file_lets_in_whoever_holds_it(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("the-token\n")
    settings = Settings(tokens=(Token(surface="shell", principal="rob", file=file),))
    assert Tokens(settings).caller("Bearer the-token").principal == "rob"
    file.unlink()
    with pytest.raises(ConfigError, match=r"the token of surface shell: cannot read .*No such file"):
        Tokens(settings)
