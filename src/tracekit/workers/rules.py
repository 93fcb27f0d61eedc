"""Rules: which way a task goes and what is planned for it, as data.

They say the same every time for the same task. `rules.toml` beside this module holds the built-in ones and describes
the form; the user's own file is read before it.
"""

from __future__ import annotations

import re
import tomllib
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qs, urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from tracekit.config import ConfigError
from tracekit.envelope import MAX_INTENT, DataTier, Name
from tracekit.queue import Position
from tracekit.queue.model import Json
from tracekit.queue.payload import plain_text
from tracekit.workers.capabilities import Capabilities
from tracekit.workers.plan import MOST_STEPS, Alert, Plan, PlanRequest, Step

LONGEST_PATTERN = 1_000
LONGEST_VALUE = 60_000

_SLOT = re.compile(r"\{([^{}]+)\}")
_SLOT_NAME = re.compile(r"[a-zA-Z_][\w-]*(?:\.[\w-]+)*(?:\|(?:slug|number|entity:[a-z0-9_]+))?")


class MissingSlot(Exception):
    """A template wants what the task does not have."""


def _listed(value: object) -> object:
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_listed)]


class _Conditions(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(min_length=1, max_length=64)]
    origin: Names = ()
    surface: Names = ()
    requester: Names = ()
    intent: Annotated[Names, Field(max_length=20)] = ()
    has: str | None = None
    longest: Annotated[int, Field(ge=1, le=MAX_INTENT)] = 300

    @model_validator(mode="after")
    def _patterns_compile(self) -> _Conditions:
        for pattern in self.intent:
            _compiled(pattern)
        return self

    def match(self, task: Position, given: Mapping[str, Json]) -> dict[str, str] | None:
        """The slots that the intent fills, where everything fits; else None."""
        if self.origin and task.origin not in self.origin:
            return None
        if self.surface and task.surface not in self.surface:
            return None
        if self.requester and task.requester not in self.requester:
            return None
        if self.has is not None and given.get(self.has) is None:
            return None
        if not self.intent:
            return {}
        if len(task.intent) > self.longest:
            return None
        said = task.intent.strip().removesuffix(".").rstrip()
        for pattern in self.intent:
            if found := _compiled(pattern).fullmatch(said):
                return {name: value for name, value in found.groupdict().items() if value is not None}
        return None


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> re.Pattern[str]:
    if len(pattern) > LONGEST_PATTERN:
        raise ValueError(f"a pattern has at most {LONGEST_PATTERN} characters")
    try:
        return re.compile(pattern, re.IGNORECASE | re.DOTALL)
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None


class Route(_Conditions):
    """Which way a task goes."""

    persona: Name | None = None
    mode: Name = "planner"


class StepTemplate(BaseModel):
    """A step with slots."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    capability: str
    arguments: dict[str, Json] = {}
    expect: dict[str, Json] = {}
    destructive: bool = False
    optional: bool = False
    data_tier: DataTier | None = None

    @model_validator(mode="after")
    def _slots_are_slots(self) -> StepTemplate:
        for text in _texts([self.arguments, self.expect]):
            for slot in _SLOT.findall(text):
                if not _SLOT_NAME.fullmatch(slot):
                    raise ValueError(f"{{{slot}}} is not a slot: the filters are slug, number and entity:<domain>")
        return self


class PlanRule(_Conditions):
    """What is planned for a task."""

    step: Annotated[tuple[StepTemplate, ...], BeforeValidator(_listed), Field(min_length=1, max_length=MOST_STEPS)]


class RulesFile(BaseModel):
    """One file of rules."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    route: Annotated[tuple[Route, ...], BeforeValidator(_listed)] = ()
    plan: Annotated[tuple[PlanRule, ...], BeforeValidator(_listed)] = ()
    entities: dict[str, str] = {}
    queries: dict[str, str] = {}


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules that apply: the user's, then the built-in ones."""

    routes: tuple[Route, ...]
    plans: tuple[PlanRule, ...]
    entities: dict[str, str]
    queries: dict[str, str]

    def route(self, task: Position, given: Mapping[str, Json]) -> Route | None:
        """The first route that fits."""
        return next((route for route in self.routes if route.match(task, given) is not None), None)

    def plan(self, task: Position, request: PlanRequest, capabilities: Capabilities) -> Plan | None:
        """What the first rule that fits, and has all that its steps need, plans for the task. Raises
        `UnknownCapability` where a rule names a capability, or gives it arguments, that do not exist.
        """
        given = request.model_dump(mode="json")
        for rule in self.plans:
            slots = rule.match(task, given)
            if slots is None:
                continue
            facts = {**given, **slots, "task": _task_facts(task)}
            if request.alert is not None:
                facts["alert"] = self._alert_facts(request.alert)
            steps = []
            try:
                for template in rule.step:
                    try:
                        steps.append(self._step(template, facts, task, capabilities))
                    except MissingSlot:
                        if not template.optional:
                            raise
            except MissingSlot:
                continue
            if steps:
                return Plan(steps=tuple(steps), persona=task.persona, reason=f"rule {rule.name}")
        return None

    def _step(
        self, template: StepTemplate, facts: Mapping[str, Json], task: Position, capabilities: Capabilities
    ) -> Step:
        capability = capabilities.get(template.capability)
        arguments = self._filled(template.arguments, facts)
        parsed = capability.parse(arguments)
        expect = self._filled(template.expect, facts) or capability.expect(parsed)
        # A step is no less confidential than the task it belongs to.
        tiers = list(DataTier)
        tier = max(template.data_tier or DataTier.PUBLIC, task.data_tier, key=tiers.index)
        return Step(
            capability=template.capability,
            arguments=arguments,
            expect=expect,
            destructive=template.destructive or capability.destructive(parsed),
            optional=template.optional,
            data_tier=tier,
        )

    def _filled(self, template: Any, facts: Mapping[str, Json]) -> Any:
        if isinstance(template, dict):
            return {name: self._filled(value, facts) for name, value in template.items()}
        if isinstance(template, list):
            return [self._filled(value, facts) for value in template]
        if not isinstance(template, str):
            return template
        if whole := _SLOT.fullmatch(template):
            return self._value(whole[1], facts)
        # Slots are filled once: what somebody said is never read as a template.
        text = _SLOT.sub(lambda slot: str(self._value(slot[1], facts)), template)
        return plain_text(text, LONGEST_VALUE)

    def _value(self, slot: str, facts: Mapping[str, Json]) -> Json:
        path, _, how = slot.partition("|")
        value: Json = facts
        for part in path.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is None or value == "":
            raise MissingSlot(slot)
        if how == "slug":
            return slug(str(value))
        if how == "number":
            try:
                number = float(str(value).replace(",", "."))
            except ValueError:
                raise MissingSlot(slot) from None
            return int(number) if number.is_integer() else number
        if how.startswith("entity:"):
            named = f"{how.removeprefix('entity:')}.{slug(str(value))}"
            return self.entities.get(named, named)
        return value

    def _alert_facts(self, alert: Alert) -> dict[str, Json]:
        name = alert.labels.get("alertname", "") or "unnamed"
        described = [alert.annotations.get(key, "") for key in ("summary", "description")]
        labels = [f"- {key}: {_line(value)}" for key, value in sorted(alert.labels.items()) if key != "alertname"]
        links = [f"- runbook: {_line(url)}" for url in [alert.annotations.get("runbook_url", "")] if url]
        since = alert.startsAt + (f", until {alert.endsAt}" if alert.status == "resolved" and alert.endsAt else "")
        return {
            **alert.model_dump(mode="json"),
            "name": _line(name),
            "described": "\n\n".join(text for text in described if text) or "No description.",
            "since": since or "unknown",
            "listed": "\n".join([*labels, *links]) or "- no labels",
            "fingerprint": alert.fingerprint or "none",
            "query": self.queries.get(name) or expression(alert.generatorURL),
        }


def load(path: Path | None) -> Rules:
    """The user's rules in `path`, before the built-in ones. Raises `ConfigError` that names the rule at fault."""
    built_in = _parse(files(__package__).joinpath("rules.toml").read_text(encoding="utf-8"), "the built-in rules")
    if path is None:
        return _joined([built_in])
    try:
        text = path.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the rules in {path}: {error}", hint="check the setting `rules`") from None
    return _joined([_parse(text, str(path)), built_in])


def _joined(parts: list[RulesFile]) -> Rules:
    return Rules(
        routes=tuple(route for part in parts for route in part.route),
        plans=tuple(plan for part in parts for plan in part.plan),
        entities={name: entity for part in reversed(parts) for name, entity in part.entities.items()},
        queries={name: query for part in reversed(parts) for name, query in part.queries.items()},
    )


def _parse(text: str, where: str) -> RulesFile:
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where} is not TOML: {error}") from None
    try:
        return RulesFile.model_validate(values)
    except ValidationError as error:
        faults = "; ".join(_fault(values, fault["loc"], fault["msg"]) for fault in error.errors()[:10])
        raise ConfigError(
            f"{where} cannot be used: {faults}", hint="the form is described in the built-in rules.toml"
        ) from None


def _fault(values: dict[str, Any], loc: tuple[int | str, ...], message: str) -> str:
    """A fault with the name of its rule, or its number where it has no name."""
    message = message.removeprefix("Value error, ")
    kind, *rest = loc
    if rest and isinstance(rest[0], int):
        rules = values.get(str(kind))
        rule = rules[rest[0]] if isinstance(rules, list) and rest[0] < len(rules) else None
        name = rule.get("name") if isinstance(rule, dict) else None
        place = f"{kind} {name!r}" if isinstance(name, str) else f"{kind} number {rest[0] + 1}"
        field = ".".join(str(part) for part in rest[1:])
        return f"{place}{', ' if field else ''}{field}: {message}"
    return f"{'.'.join(str(part) for part in loc)}: {message}"


def slug(text: str) -> str:
    """`text` as Home Assistant spells it in an entity id: lower-case letters and digits, the rest an underscore."""
    plain = unicodedata.normalize("NFKD", text.casefold()).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "_", plain.replace("'", "")).strip("_")[:60].strip("_") or "unnamed"


def expression(generator_url: str) -> str | None:
    """The PromQL that an alert came from: the first expression in its link to Prometheus's graph."""
    try:
        query = parse_qs(urlsplit(generator_url).query).get("g0.expr", [])
    except ValueError:
        return None
    return query[0] if query and 0 < len(query[0]) <= 4_000 else None


def _task_facts(task: Position) -> dict[str, Json]:
    return {
        "id": task.task_id,
        "intent": task.intent,
        "requester": task.requester,
        "date": task.task_created_at.astimezone(UTC).strftime("%Y-%m-%d"),
    }


def _line(text: str) -> str:
    return " ".join(text.split())


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, Iterable):
        for part in value:
            yield from _texts(part)
