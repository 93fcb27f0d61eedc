"""The envelope: strict, and all that is wrong with one is said at once, in plain words."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracekit import ids
from tracekit.envelope import Envelope, EnvelopeError, Origin, RetryPolicy, TaskRequest, json_schema, parse

TRACE = "0af7651916cd43dd8448eb211c80319c"
WISH = {"intent": "turn on the kitchen light", "idempotency_key": "k1"}


def sealed(**fields: Any) -> Envelope:
    request = parse(TaskRequest, {**WISH, **fields})
    return Envelope.seal(request, origin=Origin.MANUAL, surface="test", requester="rob", trace_id=TRACE)


def faults(value: object, model: Any = Envelope) -> dict[str, str]:
    with pytest.raises(EnvelopeError) as refused:
        parse(model, value)
    return {fault.field: fault.message for fault in refused.value.faults}


def test_every_fault_is_listed_at_once_in_plain_words() -> None:
    wrong = {"intent": "", "priority": "soon", "ttl": -1, "destructive": "yes", "requester": "renee", "data_tier": 3}
    found = faults(wrong, TaskRequest)
    assert set(found) == {"intent", "idempotency_key", "priority", "ttl", "destructive", "requester", "data_tier"}
    assert found["idempotency_key"] == "is missing"
    assert found["requester"] == "is not a field that can be given here"
    assert found["priority"] == "must be 'low', 'normal', 'high' or 'urgent'"


@pytest.mark.parametrize("field", [name for name, of in Envelope.model_fields.items() if of.is_required()])
def test_a_missing_field_is_a_fault(field: str) -> None:
    given = sealed().model_dump(mode="json")
    del given[field]
    assert faults(given)[field] == "is missing"


@pytest.mark.parametrize("value", [None, [], "text", b"\xff", "{", "[" * 100_000, 7])
def test_what_is_no_object_is_refused(value: object) -> None:
    assert list(faults(value, TaskRequest)) == [""]


@given(st.dictionaries(st.sampled_from([*Envelope.model_fields, "other"]), st.none() | st.text() | st.integers()))
def test_nothing_but_an_envelope_is_one(value: dict[str, Any]) -> None:
    assert faults(value)


@pytest.mark.parametrize("text", ["a\x00b", "a\ud800b"])
def test_what_postgresql_cannot_store_is_refused(text: str) -> None:
    assert set(faults({"intent": text, "idempotency_key": text}, TaskRequest)) == {"intent", "idempotency_key"}


def test_an_envelope_survives_json_and_names_its_own_root_T1() -> None:
    envelope = sealed(ttl=90, priority="urgent", data_tier="restricted")
    assert Envelope.parse(envelope.model_dump_json()) == envelope
    assert envelope.ttl == timedelta(seconds=90)
    assert envelope.traceparent == f"00-{TRACE}-{ids.root_span_id(envelope.id)}-01"
    other = {**envelope.model_dump(mode="json"), "traceparent": f"00-{TRACE}-{'1' * 16}-01"}
    assert "does not name the trace_id and the root span" in faults(other)[""]


def test_the_schema_knows_every_field_and_no_other() -> None:
    schema = json_schema()
    assert set(schema["properties"]) == set(Envelope.model_fields)
    assert schema["additionalProperties"] is False
    assert set(schema["required"]) == {name for name, of in Envelope.model_fields.items() if of.is_required()}
    assert json.loads(json.dumps(schema)) == schema


@given(st.integers(1, 10_000))
def test_the_rest_after_a_failure_has_a_ceiling_that_grows_to_its_limit(attempt: int) -> None:
    policy = RetryPolicy()
    assert policy.initial_delay <= policy.ceiling(attempt) <= policy.ceiling(attempt + 1) <= policy.max_delay
