"""Where the database comes from: a server of the user's own or a DSN, connections, migrations."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .binaries import (
        Binaries,
        BinaryProvider,
        ChosenBinaries,
        InstalledBinaries,
        WheelBinaries,
        default_provider,
    )
    from .connection import Connection, Pool, connect, is_away, open_pool, writable
    from .dsn import redact_dsn
    from .errors import (
        DatabaseError,
        SchemaChangedError,
        SchemaError,
        SchemaInUseError,
        SchemaOutdatedError,
        SchemaTooNewError,
        ServerError,
        UnreachableError,
        UnsupportedServerError,
    )
    from .postmaster import StopMode
    from .schema import Migration, check_schema, hold_schema, migrate, read_migrations
    from .server import EmbeddedServer, Lease, ServerStatus

# Imported on first use: the supervisor lives as long as the server does and needs none of psycopg,
# which would double its size and the time to start a server.
_MODULES = {
    "binaries": (
        "Binaries",
        "BinaryProvider",
        "ChosenBinaries",
        "InstalledBinaries",
        "WheelBinaries",
        "default_provider",
    ),
    "connection": ("Connection", "Pool", "connect", "is_away", "open_pool", "writable"),
    "dsn": ("redact_dsn",),
    "errors": (
        "DatabaseError",
        "SchemaChangedError",
        "SchemaError",
        "SchemaInUseError",
        "SchemaOutdatedError",
        "SchemaTooNewError",
        "ServerError",
        "UnreachableError",
        "UnsupportedServerError",
    ),
    "postmaster": ("StopMode",),
    "schema": ("Migration", "check_schema", "hold_schema", "migrate", "read_migrations"),
    "server": ("EmbeddedServer", "Lease", "ServerStatus"),
}
_HOME_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "Binaries",
    "BinaryProvider",
    "ChosenBinaries",
    "Connection",
    "DatabaseError",
    "EmbeddedServer",
    "InstalledBinaries",
    "Lease",
    "Migration",
    "Pool",
    "SchemaChangedError",
    "SchemaError",
    "SchemaInUseError",
    "SchemaOutdatedError",
    "SchemaTooNewError",
    "ServerError",
    "ServerStatus",
    "StopMode",
    "UnreachableError",
    "UnsupportedServerError",
    "WheelBinaries",
    "check_schema",
    "connect",
    "default_provider",
    "hold_schema",
    "is_away",
    "migrate",
    "open_pool",
    "read_migrations",
    "redact_dsn",
    "writable",
]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
