"""The generated files are what the code makes (D1)."""

from __future__ import annotations

import json

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models import dashboard as models

from tests.dashboards.bundled import DIRECTORY, FILES
from tracekit.dashboards import bundle


def test_d1_the_files_are_fresh() -> None:
    made = bundle.files()
    assert set(FILES) == set(made)
    for name, text in made.items():
        assert (DIRECTORY / name).read_bytes() == text.encode(), "run: tracekit dashboards build"


def test_d1_the_same_code_makes_the_same_text() -> None:
    assert bundle.files() == bundle.files()


@pytest.mark.parametrize("name", FILES)
def test_the_files_are_of_grafana_s_schema(name: str) -> None:
    """As far as its SDK has it: all of a file is read into the models, and comes out as it was."""
    register_default_plugins()
    read = models.Dashboard.from_json(json.loads((DIRECTORY / name).read_text()))
    # What it adds by itself.
    for link in read.links or []:
        link.placement = None  # type: ignore[assignment]
    for mark in read.annotations.list_val or []:
        mark.placement = None  # type: ignore[assignment]
    assert json.loads(json.dumps(read, cls=JSONEncoder)) == json.loads((DIRECTORY / name).read_text())
