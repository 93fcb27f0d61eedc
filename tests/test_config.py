"""The configuration: what cannot be read is said, in a line that quotes no value."""

from __future__ import annotations

import pytest

from tracekit.config import ConfigError, load


@pytest.mark.parametrize("name", ["TRACEKIT_WORKER", "TRACEKIT_TOKENS", "TRACEKIT_PRINCIPALS"])
def test_a_variable_that_is_no_json_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRACEKIT_CONFIG", raising=False)
    monkeypatch.setenv(name, '{"sha256": "hunter2')
    with pytest.raises(ConfigError) as caught:
        load()
    assert name.removeprefix("TRACEKIT_").lower() in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert caught.value.exit_code == 2
