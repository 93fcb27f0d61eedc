"""DSNs: what is added to their settings, and what of them may be shown."""

from __future__ import annotations

import os
from typing import Any

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from .errors import DatabaseError

# Without these a connection to a host that vanished hangs for hours: connecting has no limit, and
# TCP retries for a quarter of an hour. Seconds, but for tcp_user_timeout: milliseconds. On a Unix
# socket the TCP settings have no effect.
_DEFAULTS: dict[str, tuple[str, str]] = {
    # keyword: (value, the environment variable by which libpq would take it instead)
    "connect_timeout": ("10", "PGCONNECT_TIMEOUT"),
    "application_name": ("tracekit", "PGAPPNAME"),
    # After a switchover the old primary may still let us in, read-only.
    "target_session_attrs": ("read-write", "PGTARGETSESSIONATTRS"),
    "keepalives": ("1", ""),
    "keepalives_idle": ("30", ""),
    "keepalives_interval": ("10", ""),
    "keepalives_count": ("3", ""),
    "tcp_user_timeout": ("30000", ""),
}

_HIDDEN = "***"


def parse_dsn(dsn: str) -> dict[str, Any]:
    """Its settings by keyword. Raises DatabaseError, which does not quote the DSN."""
    try:
        return dict(conninfo_to_dict(dsn))
    except psycopg.ProgrammingError:
        # libpq's message quotes what it could not read, which may be the password.
        raise DatabaseError(
            "the DSN of the database cannot be read",
            hint="It has the form postgresql://user:password@host:5432/name, with special "
            "characters percent-encoded, or host=... user=... dbname=...",
        ) from None


def with_defaults(dsn: str, *, application_name: str = "") -> str:
    """The conninfo string with tracekit's time limits, unless the DSN or libpq's environment
    variables set them."""
    settings = parse_dsn(dsn)
    for keyword, (value, variable) in _DEFAULTS.items():
        if keyword not in settings and not (variable and variable in os.environ):
            settings[keyword] = value
            if keyword == "application_name" and application_name:
                settings[keyword] = application_name
    return make_conninfo("", **settings)


def redact_dsn(dsn: str) -> str:
    """The DSN in keyword form, secrets replaced by `***`; safe to show whatever it is."""
    try:
        settings = parse_dsn(dsn)
    except DatabaseError:
        return "(unreadable DSN)"
    secret = {o.keyword.decode() for o in pq.Conninfo.get_defaults() if o.dispchar == b"*"}
    shown = {k: _HIDDEN if k in secret else v for k, v in settings.items()}
    return make_conninfo("", **shown)
