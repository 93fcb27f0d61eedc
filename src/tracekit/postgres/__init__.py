"""Where the database comes from: a server of the user's own or a DSN, connections, migrations."""

from .binaries import (
    Binaries,
    BinaryProvider,
    ChosenBinaries,
    InstalledBinaries,
    WheelBinaries,
    default_provider,
)
from .connection import Connection, Pool, connect, open_pool
from .dsn import Dsn, redact_dsn
from .errors import (
    DatabaseError,
    SchemaChangedError,
    SchemaError,
    SchemaOutdatedError,
    SchemaTooNewError,
    ServerError,
    UnreachableError,
    UnsupportedServerError,
)
from .layout import default_home
from .migrate import Migration, check_schema, migrate, read_migrations
from .postmaster import StopMode
from .server import EmbeddedServer, Lease, ServerStatus

__all__ = [
    "Binaries",
    "BinaryProvider",
    "ChosenBinaries",
    "Connection",
    "DatabaseError",
    "Dsn",
    "EmbeddedServer",
    "InstalledBinaries",
    "Lease",
    "Migration",
    "Pool",
    "SchemaChangedError",
    "SchemaError",
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
    "default_home",
    "default_provider",
    "migrate",
    "open_pool",
    "read_migrations",
    "redact_dsn",
]
