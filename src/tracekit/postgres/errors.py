"""What can go wrong with the database, told apart as far as a caller acts on the difference."""

from tracekit.errors import TracekitError


class DatabaseError(TracekitError):
    """The database cannot be had or used. `hint` says what to do about it."""


class ServerError(DatabaseError):
    """The embedded server cannot be set up, started or stopped."""


class UnreachableError(DatabaseError):
    """No server answers at the DSN, or it does not let us in."""


class UnsupportedServerError(DatabaseError):
    """The server is older than tracekit supports."""


class SchemaError(DatabaseError):
    """The schema in the database is not the one that this program was written for."""

    exit_code = 5


class SchemaOutdatedError(SchemaError):
    """The schema is missing or older than the program; `tracekit db migrate` mends it."""


class SchemaTooNewError(SchemaError):
    """The schema is newer than the program; the program has to be upgraded."""


class SchemaChangedError(SchemaError):
    """A migration that was applied is not the one that this program carries."""


class SchemaInUseError(SchemaError):
    """The schema has to be migrated, and programs are at work on it as it is."""
