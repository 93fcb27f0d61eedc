"""A collector, and an environment that says nothing about OpenTelemetry until a test does."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.otlp import OtlpReceiver
from tracekit.tracing.otlp import Collector, collector_from_environment


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[OtlpReceiver]:
    with OtlpReceiver(tmp_path) as started:
        yield started


@pytest.fixture(params=["http/protobuf", "grpc"])
def protocol(request: pytest.FixtureRequest) -> str:
    """For tests that are to hold over both."""
    return str(request.param)


@pytest.fixture
def collector(receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch) -> Collector:
    """The receiver over http/protobuf, as the standard variables name it."""
    return configured(receiver, monkeypatch)


def configured(receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch, protocol: str = "http/protobuf") -> Collector:
    """The collector that the environment names, once it names the receiver."""
    for name, value in receiver.environment(protocol).items():
        monkeypatch.setenv(name, value)
    found = collector_from_environment()
    assert found is not None
    return found
