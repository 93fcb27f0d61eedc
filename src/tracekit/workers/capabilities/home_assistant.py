"""`home_assistant.call_service`: call a service on named entities, and see what state they reach.

An answer of 200 is not success: an entity that does not exist gets `200 []`, and a lock that jams gets 200 too. So the
entities are looked up before the call, and afterwards their states are read until they are as expected, or show that
they will not be, or `home_assistant.verify_timeout` is over.
"""

from __future__ import annotations

import asyncio
import time
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from tracekit.config import Settings
from tracekit.queue.model import Json
from tracekit.workers.capabilities import (
    Capability,
    Misconfigured,
    Refused,
    Unavailable,
    difference,
)
from tracekit.workers.capabilities.http import request
from tracekit.workers.mode import Hop

MOST_ENTITIES = 20
_TARGETS = frozenset({"entity_id", "area_id", "device_id", "floor_id", "label_id", "target"})
_HOPELESS = frozenset({"jammed"})
"""States that waiting does not mend."""
_SECRETS = frozenset({"code", "pin", "password"})

Part = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]{1,64}$")]
EntityId = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]{1,64}\.[a-z0-9_]{1,190}$")]


class ServiceCall(BaseModel):
    """A service of one domain, called on entities of that domain."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    domain: Part
    service: Part
    entity_id: Annotated[tuple[EntityId, ...], Field(min_length=1, max_length=MOST_ENTITIES)]
    data: dict[Part, Json] = {}
    """More of the service's own fields, such as a temperature."""

    @field_validator("entity_id", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _one_domain(self) -> ServiceCall:
        # A light's service must not reach a lock: neither by its entity's name nor by a target in the data.
        for entity in self.entity_id:
            if entity.partition(".")[0] != self.domain:
                raise ValueError(f"{entity} is not of the domain {self.domain}")
        if hidden := sorted(_TARGETS & set(self.data)):
            raise ValueError(f"data must not name targets ({', '.join(hidden)}): entity_id does")
        return self


class Service(BaseModel):
    """What is known of a service; by default, the worst."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    destructive: bool = False
    repeatable: bool = False
    state: Json = None
    attributes: dict[str, Json] = {}
    say: str


@cache
def services() -> dict[tuple[str, str], Service]:
    """The table of known services, by domain and name."""
    table = tomllib.loads(files(__package__).joinpath("home_assistant.toml").read_text())
    return {
        (domain, name): Service.model_validate(entry)
        for domain, entries in table.items()
        for name, entry in entries.items()
    }


class CallService(Capability[ServiceCall]):
    """Calls a service of Home Assistant over REST."""

    name = "home_assistant.call_service"
    arguments_type = ServiceCall

    def describe(self, arguments: ServiceCall) -> str:
        """Such as `unlock lock.front_door`."""
        known = services().get((arguments.domain, arguments.service))
        say = known.say if known else f"call {arguments.domain}.{arguments.service} on"
        told = f"{say} {', '.join(arguments.entity_id)}"
        if arguments.data:
            shown = {name: "(hidden)" if name in _SECRETS else value for name, value in arguments.data.items()}
            told += f" ({', '.join(f'{name} {value}' for name, value in shown.items())})"
        return told

    def category(self, arguments: ServiceCall) -> str:
        """The domain."""
        return arguments.domain

    def destructive(self, arguments: ServiceCall) -> bool:
        """What the table says; what it does not know is."""
        known = services().get((arguments.domain, arguments.service))
        return known is None or known.destructive

    def repeatable(self, arguments: ServiceCall) -> bool:
        """What the table says; what it does not know is not."""
        known = services().get((arguments.domain, arguments.service))
        return known is not None and known.repeatable

    def expect(self, arguments: ServiceCall) -> dict[str, Json]:
        """The state that the service leads to."""
        known = services().get((arguments.domain, arguments.service))
        if known is None:
            return {}
        expected: dict[str, Json] = {}
        if (state := _filled(known.state, arguments.data)) is not None:
            expected["state"] = state
        attributes = {name: _filled(value, arguments.data) for name, value in known.attributes.items()}
        if attributes := {name: value for name, value in attributes.items() if value is not None}:
            expected["attributes"] = attributes
        return expected

    def missing(self, settings: Settings) -> str | None:
        """It needs an address and a token."""
        if not settings.home_assistant.url or not settings.home_assistant.token.get_secret_value():
            return "Home Assistant is not configured: set home_assistant.url and home_assistant.token"
        return None

    async def run(self, hop: Hop[Any], arguments: ServiceCall, idempotency_key: str) -> Json:
        """Look the entities up, then call. The result: the last state of each that the call itself reported."""
        for entity in arguments.entity_id:
            state = await self._state(hop, entity)
            if state is None:
                raise Refused(f"Home Assistant has no entity {entity}", hint="name it in [entities] of the rules file")
        status, answer = await self._request(
            hop,
            "POST",
            f"/api/services/{arguments.domain}/{arguments.service}",
            acts=True,
            json_body={**arguments.data, "entity_id": list(arguments.entity_id)},
        )
        called = f"{arguments.domain}.{arguments.service}"
        if status == 404:
            raise Misconfigured("Home Assistant has no REST API at home_assistant.url", hint="check home_assistant.url")
        if status >= 400:
            raise Refused(f"Home Assistant does not take {called} with these values ({status})")
        last: dict[str, Json] = {}
        for state in answer if isinstance(answer, list) else ():
            if isinstance(state, dict) and state.get("entity_id") in arguments.entity_id:
                last[state["entity_id"]] = _facts(state, {})
        return {"called": called, "states": last}

    async def observe(
        self, hop: Hop[Any], arguments: ServiceCall, expect: Mapping[str, Json], result: Json
    ) -> dict[str, Json]:
        """Each entity's state, read until it is as expected, is hopeless, or the time is over."""
        ends = time.monotonic() + hop.services.settings.home_assistant.verify_timeout.total_seconds()
        seen: dict[str, Json] = {}
        pause = 0.1
        while True:
            for entity in arguments.entity_id:
                if entity not in seen or not _settled(expect, seen[entity]):
                    state = await self._state(hop, entity)
                    seen[entity] = _facts(state, expect) if state else {"state": None}
            left = ends - time.monotonic()
            if left <= 0 or all(_settled(expect, facts) for facts in seen.values()):
                return seen
            await asyncio.sleep(min(pause, left))
            pause = min(pause * 1.5, 1.0)

    async def _state(self, hop: Hop[Any], entity: str) -> dict[str, Json] | None:
        status, answer = await self._request(hop, "GET", f"/api/states/{entity}", acts=False)
        if status == 404:
            return None
        if status != 200 or not isinstance(answer, dict):
            raise Unavailable(f"Home Assistant did not tell the state of {entity} ({status})")
        return answer

    async def _request(
        self, hop: Hop[Any], method: str, path: str, *, acts: bool, json_body: Json = None
    ) -> tuple[int, Json]:
        settings = hop.services.settings.home_assistant
        return await request(
            hop,
            "Home Assistant",
            method,
            settings.url.rstrip("/") + path,
            setting="home_assistant.url and home_assistant.token",
            acts=acts,
            headers={"Authorization": f"Bearer {settings.token.get_secret_value()}"},
            json_body=json_body,
        )


def _facts(state: Mapping[str, Json], expect: Mapping[str, Json]) -> dict[str, Json]:
    """Of a state what is compared and what links it to the call; its other attributes are not tracekit's to keep."""
    attributes = state.get("attributes")
    wanted = expect.get("attributes")
    context = state.get("context")
    return {
        "state": state.get("state"),
        "attributes": {name: attributes.get(name) for name in (wanted if isinstance(wanted, dict) else ())}
        if isinstance(attributes, dict)
        else {},
        "last_updated": state.get("last_updated"),
        "context": context.get("id") if isinstance(context, dict) else None,
    }


def _settled(expect: Mapping[str, Json], facts: Json) -> bool:
    return difference(dict(expect), facts) is None or facts.get("state") in _HOPELESS


def _filled(template: Json, data: Mapping[str, Json]) -> Json:
    if isinstance(template, str) and template.startswith("{") and template.endswith("}"):
        return data.get(template[1:-1])
    return template
