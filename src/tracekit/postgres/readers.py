"""Who may read what dashboards show: the role `tracekit_grafana`, and logins that are members of it.

Roles are the server's, and another database's may be made at the same moment. What is there already is left as it is
where it does no harm, and refused where it might.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import LiteralString

import psycopg
from psycopg import sql
from psycopg.abc import Query

from .connection import Connection
from .errors import DatabaseError

READERS = "tracekit_grafana"
"""May use the schema `grafana`, and nothing else."""

STATEMENT_TIMEOUT = timedelta(seconds=30)
"""Of a login: a panel that takes longer is of no use, and holds back vacuum."""

_ROLE: LiteralString = """
SELECT r.rolcanlogin, pg_has_role(r.oid, %s, 'MEMBER'),
       r.rolsuper OR r.rolcreaterole OR r.rolcreatedb OR r.rolreplication OR r.rolbypassrls
       OR EXISTS (SELECT FROM pg_auth_members AS m WHERE m.member = r.oid AND m.roleid <> %s::regrole)
FROM pg_roles AS r WHERE r.rolname = %s
"""

_READABLE: LiteralString = """
SELECT has_schema_privilege(%s, 'grafana', 'USAGE') AND bool_and(has_table_privilege(%s, oid, 'SELECT'))
FROM pg_class WHERE relnamespace = 'grafana'::regnamespace AND relkind = 'v'
"""


@dataclass(frozen=True, slots=True)
class Granted:
    """What was done."""

    role_made: bool
    login_made: bool


async def grant_reading(
    conn: Connection, *, login: str = "", password: str = "", most_connections: int = 10
) -> Granted:
    """Make the role where it is missing, and let it read all of the schema `grafana`. With `login`, let a role of this
    name log in as a member: read-only, with a limit to its statements' time and `most_connections` of its own. One that
    is there already gets the password; without one its own stays, or it has none.

    All of it or nothing. `conn` is in autocommit, as somebody who may make roles and owns the schema or is a superuser.
    Raises DatabaseError, which never shows the password.
    """
    try:
        async with conn.transaction():
            role_made = await _create(conn, sql.SQL("CREATE ROLE {} NOLOGIN").format(sql.Identifier(READERS)), READERS)
            await _grant(conn)
            login_made = await _let_in(conn, login, password, most_connections) if login else False
    except psycopg.errors.InsufficientPrivilege as exc:
        raise DatabaseError(
            f"{conn.info.user} may not do that: {exc.diag.message_primary or exc}",
            hint="Run it once as a superuser of the server, by TRACEKIT_DSN.",
        ) from None
    return Granted(role_made, login_made)


async def _create(conn: Connection, statement: Query, name: str) -> bool:
    """Make a role, unless it is there or somebody else makes it at this moment."""
    cursor = await conn.execute("SELECT FROM pg_roles WHERE rolname = %s", [name])
    if await cursor.fetchone() is not None:
        return False
    try:
        async with conn.transaction():
            await conn.execute(statement)
    except (psycopg.errors.DuplicateObject, psycopg.errors.UniqueViolation):
        return False
    return True


async def _grant(conn: Connection) -> None:
    to = sql.SQL(" TO {}").format(sql.Identifier(READERS))
    grants: tuple[LiteralString, ...] = (
        "USAGE ON SCHEMA grafana",
        "SELECT ON ALL TABLES IN SCHEMA grafana",
        "EXECUTE ON ALL FUNCTIONS IN SCHEMA grafana",
    )
    for grant in grants:
        await conn.execute(sql.SQL("GRANT ") + sql.SQL(grant) + to)
    # Who has a right and may not hand it on is warned, and no more.
    cursor = await conn.execute(_READABLE, [READERS, READERS])
    if (row := await cursor.fetchone()) and not row[0]:
        raise psycopg.errors.InsufficientPrivilege("it may not grant what it does not own")
    # Everybody may connect to a database unless somebody has said otherwise.
    cursor = await conn.execute("SELECT has_database_privilege(%s, current_database(), 'CONNECT')", [READERS])
    if (row := await cursor.fetchone()) and not row[0]:
        await conn.execute(sql.SQL("GRANT CONNECT ON DATABASE {}").format(sql.Identifier(conn.info.dbname)) + to)


async def _let_in(conn: Connection, login: str, password: str, most_connections: int) -> bool:
    if login == READERS:
        raise DatabaseError(f"{READERS} is the role that logins are members of", hint="Choose another name.")
    name = sql.Identifier(login)
    made = await _create(conn, sql.SQL("CREATE ROLE {} LOGIN IN ROLE {}").format(name, sql.Identifier(READERS)), login)
    cursor = await conn.execute(_ROLE, [READERS, READERS, login])
    can_login, member, more = await cursor.fetchone() or (False, False, True)
    if more or not (can_login and member):
        raise DatabaseError(
            f"there is a role {login} already, and it is no login for dashboards alone",
            hint="Choose another name: its password and its limits would be changed.",
        )
    settings = [
        sql.SQL("SET default_transaction_read_only = on"),
        sql.SQL("SET statement_timeout = {}").format(sql.Literal(f"{STATEMENT_TIMEOUT.total_seconds():g}s")),
        # What the views look up is expected to cost more than it does, and would be compiled for longer than it runs.
        sql.SQL("SET jit = off"),
        sql.SQL("CONNECTION LIMIT {}").format(sql.Literal(most_connections)),
    ]
    if password:
        # As its verifier: a server that logs statements would log a password.
        verifier = conn.pgconn.encrypt_password(password.encode(), login.encode(), b"scram-sha-256")
        settings.append(sql.SQL("PASSWORD {}").format(sql.Literal(verifier.decode())))
    for setting in settings:
        await conn.execute(sql.SQL("ALTER ROLE {} ").format(name) + setting)
    return made
