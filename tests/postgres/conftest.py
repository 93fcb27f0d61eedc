"""One server for all tests that only need a database, and homes for those that break servers."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.postgres import ThrowawayServer, make_home, remove_home
from tracekit.postgres import EmbeddedServer


@pytest.fixture(scope="session")
def shared_server() -> Iterator[ThrowawayServer]:
    with ThrowawayServer() as server:
        yield server


@pytest.fixture
def dsn(shared_server: ThrowawayServer) -> str:
    # Not dropped afterwards: that costs a checkpoint, and the server goes soon.
    return shared_server.create_database()


@pytest.fixture(scope="session")
def initialised_home() -> Iterator[Path]:
    home = make_home()
    yield home
    remove_home(home)


@pytest.fixture
def home(initialised_home: Path) -> Iterator[Path]:
    """A home whose server is down. Its data is that of the tests before: initdb takes longer than most of them."""
    yield initialised_home
    server = EmbeddedServer(initialised_home)
    server.stop()
    server.status().log.unlink(missing_ok=True)


@pytest.fixture
def new_home() -> Iterator[Path]:
    """A home without data yet."""
    home = make_home()
    yield home
    remove_home(home)


@pytest.fixture
def server(home: Path) -> EmbeddedServer:
    return EmbeddedServer(home, linger=0)
