"""The command line on a database of the test's own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.running import Cli, environment
from tests.support.postgres import make_home, remove_home


@pytest.fixture
def home() -> Iterator[Path]:
    home = make_home()
    yield home
    remove_home(home)


@pytest.fixture
def cli(dsn: str, tmp_path: Path) -> Cli:
    """With a DSN, as on a server."""
    return Cli(environment(tmp_path, dsn))


@pytest.fixture
def embedded(home: Path) -> Cli:
    """With the embedded server, as on a laptop."""
    return Cli(environment(home))
