"""The world that the dashboards show, made once."""

from collections.abc import AsyncIterator

import pytest

from tests.dashboards.world import World, world


@pytest.fixture(scope="session")
async def the_world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """A whole system that has run, and runs."""
    async with world(tmp_path_factory.mktemp("world")) as made:
        yield made
