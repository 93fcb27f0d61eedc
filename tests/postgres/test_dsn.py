"""DSNs: what is added, and what is never shown."""

import pytest
from psycopg.conninfo import conninfo_to_dict

from tracekit.postgres import DatabaseError, redact_dsn
from tracekit.postgres.dsn import with_defaults


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://user:s3cret@db.example:5432/name",
        "host=db.example user=user password=s3cret dbname=name",
        "postgresql://db.example/name?user=user&password=s3cret",
        "host=db.example password='s3cret' sslpassword=s3cret",
    ],
)
def test_secrets_are_not_shown(dsn: str) -> None:
    shown = redact_dsn(dsn)
    assert "s3cret" not in shown
    assert "db.example" in shown
    assert "***" in shown


@pytest.mark.parametrize("dsn", ["postgresql://user:s3cret%zz@host/db", "s3cret", "password=s3cret nonsense=1"])
def test_unreadable_dsn_is_not_quoted(dsn: str) -> None:
    assert redact_dsn(dsn) == "(unreadable DSN)"
    with pytest.raises(DatabaseError, match="cannot be read") as caught:
        with_defaults(dsn)
    assert "s3cret" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_defaults_bound_every_wait() -> None:
    settings = conninfo_to_dict(with_defaults("host=a"))
    assert settings == {
        "host": "a",
        "connect_timeout": "10",
        "application_name": "tracekit",
        "target_session_attrs": "read-write",
        "keepalives": "1",
        "keepalives_idle": "30",
        "keepalives_interval": "10",
        "keepalives_count": "3",
        "tcp_user_timeout": "30000",
    }


def test_what_is_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "3")
    settings = conninfo_to_dict(with_defaults("host=a application_name=mine keepalives=0", application_name="pool"))
    assert settings["application_name"] == "mine"
    assert settings["keepalives"] == "0"
    assert "connect_timeout" not in settings
