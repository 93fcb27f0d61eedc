"""Rules: the same task gives the same route and plan, and a bad rules file says which rule is bad."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracekit.config import ConfigError
from tracekit.envelope import DataTier, RetryPolicy
from tracekit.ids import new_task_id, new_trace_id
from tracekit.queue import Position
from tracekit.workers.capabilities import installed
from tracekit.workers.plan import Plan, PlanRequest
from tracekit.workers.rules import Rules, expression, load, slug

AT = datetime(2026, 11, 23, 7, 12, tzinfo=UTC)
BUILT_IN = load(None)


def task(intent: str, **fields: Any) -> Position:
    position = Position(
        task_id=new_task_id(),
        trace_id=new_trace_id(),
        trace_state="",
        origin="manual",
        surface="test",
        requester="rob",
        intent=intent,
        rank=1,
        destructive=False,
        data_tier=DataTier.INTERNAL,
        retry_policy=RetryPolicy(),
        tags=(),
        review_of=None,
        task_created_at=AT,
        hop=2,
        mode="planner",
        persona="assistant",
        hop_created_at=AT,
        ready_at=AT,
        due_at=None,
        state="running",
        expires_at=None,
        attempt=1,
        max_attempts=5,
        token=1,
        worker="w1",
        claimed_at=AT,
        wait_attempt=None,
    )
    return position._replace(**fields)


def planned(intent: str, request: PlanRequest | None = None, rules: Rules = BUILT_IN, **fields: Any) -> Plan | None:
    return rules.plan(task(intent, **fields), request or PlanRequest(), installed())


def rules_in(tmp_path: Path, text: str) -> Rules:
    path = tmp_path / "rules.toml"
    path.write_text(text)
    return load(path)


@pytest.mark.parametrize(
    ("intent", "call", "destructive"),
    [
        ("turn on the kitchen light", "light.turn_on light.kitchen", False),
        ("Turn on the kitchen light, please.", "light.turn_on light.kitchen", False),
        ("Please turn off the living room lights.", "light.turn_off light.living_room", False),
        ("switch the hall light off", "light.turn_off light.hall", False),
        ("TURN ON Renée's light", "light.turn_on light.renees", False),
        ("lock the front door", "lock.lock lock.front_door", False),
        ("unlock the front door", "lock.unlock lock.front_door", True),
        ("  Unlock front door.  ", "lock.unlock lock.front_door", True),
        ("activate the movie night scene", "scene.turn_on scene.movie_night", False),
        ("scene good night", "scene.turn_on scene.good_night", False),
        ("pause the music in the kitchen", "media_player.media_pause media_player.kitchen", False),
        ("resume on the living room", "media_player.media_play media_player.living_room", False),
    ],
)
def test_what_people_say_to_a_house(intent: str, call: str, destructive: bool) -> None:
    plan = planned(intent)
    assert plan is not None
    [step] = plan.steps
    arguments = step.arguments
    assert f"{arguments['domain']}.{arguments['service']} {arguments['entity_id']}" == call
    assert (step.destructive, plan.destructive) == (destructive, destructive)


@pytest.mark.parametrize(
    ("intent", "degrees"),
    [
        ("set the living room to 21 degrees", 21),
        ("set the living room to 21.5°C", 21.5),
        ("Set temperature in the living room to 19,5 degrees celsius", 19.5),
        ("set the living room to -3", -3),
    ],
)
def test_temperatures_are_numbers_and_expected(intent: str, degrees: float) -> None:
    plan = planned(intent)
    assert plan is not None
    assert plan.steps[0].arguments["data"] == {"temperature": degrees}
    assert plan.steps[0].expect == {"attributes": {"temperature": degrees}}
    assert plan.steps[0].arguments["entity_id"] == "climate.living_room"


@pytest.mark.parametrize(
    "intent",
    [
        "",
        "make me a sandwich",
        "turn on",
        "turn on the kitchen light and unlock the front door",
        "don't turn on the kitchen light",
        "unlock the front door; rm -rf /",
        "turn on the " + "very " * 100 + "long light",
        "set the living room to 100 degrees",
    ],
)
def test_what_no_rule_fits_is_not_planned(intent: str) -> None:
    assert planned(intent) is None


def test_a_note_keeps_its_text_as_it_was_said() -> None:
    plan = planned("Note: buy {milk} and {task.id},\n  two bottles ../../etc")
    assert plan is not None
    arguments = plan.steps[0].arguments
    assert arguments["text"] == "buy {milk} and {task.id},\n  two bottles ../../etc\n"
    assert arguments["path"].startswith("inbox/2026-11-23-buy_milk_and_task_id_two_bottles_etc-")


def firing(**alert: Any) -> PlanRequest:
    payload = json.loads(
        '{"fingerprint": "a33b9ba9c13c0f3e", "status": "firing", "labels": {"alertname": "PodCrashLooping",'
        ' "namespace": "media", "pod": "jellyfin-0", "severity": "critical"}, "annotations": {"summary":'
        ' "jellyfin-0 crash looping", "runbook_url": "https://runbooks.example/PodCrashLooping"},'
        ' "startsAt": "2026-11-23T07:12:08.586Z", "endsAt": null,'
        ' "generatorURL": "http://prometheus.local/graph?g0.expr=up+%3D%3D+0&g0.tab=1"}'
    )
    return PlanRequest.model_validate({"alert": {**payload, **alert}})


def test_an_alert_is_looked_up_and_noted() -> None:
    plan = planned("Alert firing: PodCrashLooping – jellyfin-0 crash looping", firing())
    assert plan is not None
    query, note = plan.steps
    assert (query.arguments, query.optional) == ({"query": "up == 0"}, True)
    assert note.arguments["path"].startswith("alerts/2026-11-23-podcrashlooping-")
    assert note.arguments["text"].splitlines() == [
        "# PodCrashLooping: firing",
        "",
        "jellyfin-0 crash looping",
        "",
        "- since: 2026-11-23T07:12:08.586Z",
        "- fingerprint: a33b9ba9c13c0f3e",
        "",
        "- namespace: media",
        "- pod: jellyfin-0",
        "- severity: critical",
        "- runbook: https://runbooks.example/PodCrashLooping",
    ]


def test_an_alert_of_nothing_but_its_shape_is_noted_all_the_same() -> None:
    plan = planned("Alert resolved: unnamed", PlanRequest.model_validate({"alert": {"status": "resolved"}}))
    assert plan is not None
    [note] = plan.steps
    assert note.arguments["text"].startswith("# unnamed: resolved")


def test_a_workaround_that_can_go_is_noted() -> None:
    found = {
        "repository": "infra/homelab",
        "file": "apps/jellyfin.yaml",
        "lines": [3],
        "url": "https://github.com/jellyfin/jellyfin/issues/1",
        "condition": "it is closed",
        "found": "it is closed",
    }
    plan = planned("Remove the workaround", PlanRequest.model_validate({"workaround": found}))
    assert plan is not None
    assert plan.steps[0].arguments["path"].startswith("workarounds/2026-11-23-infra_homelab-")
    assert "- waits for: https://github.com/jellyfin/jellyfin/issues/1\n" in plan.steps[0].arguments["text"]
    route = BUILT_IN.route(task("Remove the workaround"), {"workaround": found})
    assert route is not None
    assert route.persona == "maintainer"


def test_a_configured_query_comes_before_the_alerts_own(tmp_path: Path) -> None:
    rules = rules_in(tmp_path, '[queries]\nPodCrashLooping = "kube_pod_info"\n')
    plan = planned("Alert firing", firing(), rules)
    assert plan is not None
    assert plan.steps[0].arguments == {"query": "kube_pod_info"}


@pytest.mark.parametrize("url", ["", "not a url", "http://[", "http://p/graph", "http://p/graph?g0.expr=" + "x" * 5000])
def test_links_without_an_expression(url: str) -> None:
    assert expression(url) is None


def test_routes_follow_origin_surface_requester_intent_and_input(tmp_path: Path) -> None:
    rules = rules_in(
        tmp_path,
        """
        [[route]]
        name = "renee's kitchen"
        requester = "renee"
        surface = ["ha", "phone"]
        intent = '.*kitchen.*'
        mode = "kitchen"
        persona = "cook"
        """,
    )

    def way(given: dict[str, Any], **fields: Any) -> tuple[str | None, str]:
        route = rules.route(task(fields.pop("intent", "clean the kitchen"), **fields), given)
        assert route is not None
        return route.persona, route.mode

    assert way({}, requester="renee", surface="phone") == ("cook", "kitchen")
    assert way({}, requester="renee", surface="web") == ("assistant", "planner")
    assert way({}, requester="rob", surface="phone") == ("assistant", "planner")
    assert way({}, requester="renee", surface="phone", intent="clean the hall") == ("assistant", "planner")
    assert way({}, origin="ha-voice") == ("steward", "planner")
    assert way({"alert": {}}) == ("triager", "planner")
    assert way({"alert": None}) == ("assistant", "planner")


def test_the_users_rules_come_first_and_names_lead_to_entities(tmp_path: Path) -> None:
    rules = rules_in(
        tmp_path,
        """
        [entities]
        "light.kitchen" = "light.shelly_1pm_4c7525"
        [[plan]]
        name = "good night"
        intent = "good night"
        [[plan.step]]
        capability = "home_assistant.call_service"
        arguments = { domain = "lock", service = "lock", entity_id = "lock.front_door" }
        [[plan.step]]
        capability = "home_assistant.call_service"
        arguments = { domain = "light", service = "turn_off", entity_id = "{task.requester|entity:light}" }
        destructive = true
        data_tier = "restricted"
        """,
    )
    kitchen = planned("turn on the kitchen light", rules=rules)
    assert kitchen is not None
    assert kitchen.steps[0].arguments["entity_id"] == "light.shelly_1pm_4c7525"
    night = planned("Good night.", rules=rules)
    assert night is not None
    assert night.reason == "rule good night"
    assert [step.destructive for step in night.steps] == [False, True]
    assert [step.data_tier for step in night.steps] == [DataTier.INTERNAL, DataTier.RESTRICTED]
    assert night.steps[1].arguments["entity_id"] == "light.rob"


def test_a_step_is_no_less_confidential_than_its_task() -> None:
    plan = planned("turn on the kitchen light", data_tier=DataTier.RESTRICTED)
    assert plan is not None
    assert plan.restricted


STEP = 'step = [{ capability = "note.write", arguments = { path = "a.md", text = "%s" } }]'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[plan]\n", "is not TOML"),
        ('[[plan]]\nname = "broken"\nintent = "(a"\n' + STEP % "a", "plan 'broken': '(a' is not a regular expression"),
        ('[[plan]]\nname = "stepless"\n', "plan 'stepless', step: Field required"),
        ('[[plan]]\nname = "typo"\nintnt = "x"\n' + STEP % "a", "plan 'typo', intnt: Extra inputs"),
        ('[[plan]]\nname = "slots"\n' + STEP % "{a|shout}", "{a|shout} is not a slot"),
        ('[[plan]]\nname = "ok"\n' + STEP % "a" + '\n[[plan]]\nintent = "x"\n' + STEP % "a", "plan number 2, name"),
        ('[[route]]\nname = "r"\nmode = "No Mode"\n', "route 'r', mode"),
        ("routes = []\n", "routes: Extra inputs"),
        ('[[route]]\nname = "long"\nintent = "%s"\n' % ("x" * 1001), "at most 1000 characters"),
    ],
)
def test_a_bad_rules_file_names_the_rule(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        rules_in(tmp_path, text)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_rules_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the rules"):
        load(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot read the rules"):
        load(tmp_path / "binary.toml")


NAMES = st.from_regex(r"\A[a-zA-Z][a-zA-Z ]{0,30}[a-zA-Z]\Z").filter(lambda name: "  " not in name)


@given(NAMES, st.sampled_from(["on", "off"]))
def test_any_name_of_a_light_becomes_one_entity_of_its_domain(name: str, state: str) -> None:
    plan = planned(f"turn {state} the {name} light")
    assert plan is not None
    [step] = plan.steps
    call = installed().get(step.capability).parse(step.arguments)
    assert call.model_dump()["domain"] == "light"
    assert step.arguments["entity_id"] == f"light.{slug(name)}" or name.lower().startswith(("the ", "scene "))
    assert not plan.destructive


@given(st.text(max_size=400))
def test_whatever_is_said_the_plan_is_safe_or_none_and_the_same_again(intent: str) -> None:
    said = task(intent)
    once, again = (BUILT_IN.plan(said, PlanRequest(), installed()) for _ in range(2))
    assert once == again
    if once is not None:
        for step in once.steps:
            capability = installed().get(step.capability)
            assert step.destructive == capability.destructive(capability.parse(step.arguments))


@given(st.text())
def test_a_slug_is_always_part_of_an_entity_id(text: str) -> None:
    assert set(slug(text)) <= set("abcdefghijklmnopqrstuvwxyz0123456789_")
    assert 0 < len(slug(text)) <= 60


def test_the_longest_intent_costs_little() -> None:
    began = time.process_time()
    for intent in ("turn on the " + "a " * 8000, "set the " + "1 to " * 3000, "please " * 2000, "note:" + " " * 16000):
        planned(intent)
    assert time.process_time() - began < 1
