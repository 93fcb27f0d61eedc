"""Capabilities: the things that the executor can do to the world.

One of another package is an entry point of the group `tracekit.capabilities`, named as it names itself, and looks like
this::

    class Arguments(BaseModel):
        model_config = ConfigDict(extra="forbid")
        text: str

    class Shout(Capability[Arguments]):
        name = "speaker.shout"
        arguments_type = Arguments

        def describe(self, arguments): return f"shout {arguments.text!r}"
        def category(self, arguments): return "speaker"
        async def run(self, hop, arguments, idempotency_key): ...
        async def observe(self, hop, arguments, expect, result): ...

Whether a deed is destructive and whether it may be repeated, a capability decides from the arguments alone, by rules
that are the same every time; until it says otherwise, each deed is destructive and must not be repeated.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from tracekit.config import Settings
from tracekit.errors import TracekitError
from tracekit.queue.model import Json
from tracekit.workers.mode import Hop

Arguments = TypeVar("Arguments", bound=BaseModel)


class Refused(TracekitError):
    """The world said no: nothing was done, and asking again changes nothing. The task fails with these words."""


class Unavailable(TracekitError):
    """What is needed cannot be reached: nothing was done. Later it may be."""


class Misconfigured(TracekitError):
    """Nothing was done, and nothing will be before the operator has changed the configuration."""


class Uncertain(TracekitError):
    """The request was sent, and nobody can say whether it took effect."""


class UnknownCapability(TracekitError):
    """No installed package brings it, or the arguments are not what it takes."""

    exit_code = 2


class Capability(ABC, Generic[Arguments]):
    """One kind of deed. Keeps no state between calls."""

    name: ClassVar[str]
    """Lower case, as plans name it."""
    arguments_type: type[Arguments]
    """Strict: what does not fit is refused before anybody is asked to approve it."""

    @abstractmethod
    def describe(self, arguments: Arguments) -> str:
        """What will be done, in plain words, whole: this is what a person approves."""

    def brief(self, arguments: Arguments) -> str:
        """The same in a few words, for what is told once it is done."""
        return self.describe(arguments)

    @abstractmethod
    def category(self, arguments: Arguments) -> str:
        """What kind of thing it touches: what `guardian.household_allowlist` names."""

    def destructive(self, arguments: Arguments) -> bool:
        """Whether a person must approve it (P4)."""
        return True

    def repeatable(self, arguments: Arguments) -> bool:
        """Whether doing it twice is as good as once. It is then done again after a worker died over it."""
        return False

    def expect(self, arguments: Arguments) -> dict[str, Json]:
        """What must be seen of each thing touched once it is done, where the plan does not say."""
        return {}

    def missing(self, settings: Settings) -> str | None:
        """What must be configured before it can be used, or None."""
        return None

    @abstractmethod
    async def run(self, hop: Hop[Any], arguments: Arguments, idempotency_key: str) -> Json:
        """Do it. The result is kept with the task.

        Raises `Refused`, `Unavailable` or `Misconfigured` where nothing was done; anything else leaves it uncertain.
        """

    @abstractmethod
    async def observe(
        self, hop: Hop[Any], arguments: Arguments, expect: Mapping[str, Json], result: Json
    ) -> dict[str, Json]:
        """What can be read back: of each thing touched, what is seen of it now. Safe to repeat.

        `expect` is what the plan waits to see, for a world that takes its time.
        """

    def parse(self, arguments: Mapping[str, Json]) -> Arguments:
        """The arguments as their type. Raises `UnknownCapability` with every fault, without the values."""
        try:
            return self.arguments_type.model_validate(dict(arguments))
        except ValidationError as error:
            faults = "; ".join(
                f"{'.'.join(map(str, fault['loc'])) or 'arguments'}: {fault['msg']}" for fault in error.errors()
            )
            raise UnknownCapability(f"{self.name} cannot take these arguments: {faults}") from None


class Capabilities:
    """The capabilities that can be used here, by name."""

    def __init__(self, found: Mapping[str, Capability[Any]]) -> None:
        self._found = dict(found)

    def get(self, name: str) -> Capability[Any]:
        """Raises `UnknownCapability`."""
        if name not in self._found:
            raise UnknownCapability(
                f"there is no capability {name!r}",
                hint=f"installed are {', '.join(sorted(self._found))}",
            )
        return self._found[name]


@cache
def installed() -> Capabilities:
    """The capabilities of all installed packages. A name that two of them bring is refused."""
    found: dict[str, Capability[Any]] = {}
    for entry in entry_points(group="tracekit.capabilities"):
        if entry.name in found:
            raise UnknownCapability(
                f"two installed packages bring a capability named {entry.name!r}", hint="uninstall one of them"
            )
        found[entry.name] = entry.load()()
    return Capabilities(found)


def difference(expect: Json, seen: Json) -> str | None:
    """What of `seen` is not as expected, in plain words; None where all is.

    An object must have what the expected one names, and may have more. A list expects any one of its members.
    """
    if isinstance(expect, dict):
        if not isinstance(seen, dict):
            return f"should be known, but is {_words(seen)}"
        for name, wanted in expect.items():
            if (found := difference(wanted, seen.get(name))) is not None:
                # Of nested facts the innermost name says enough: `temperature should be 21`.
                return found if isinstance(wanted, dict) and isinstance(seen.get(name), dict) else f"{name} {found}"
        return None
    if isinstance(expect, list):
        if any(difference(one, seen) is None for one in expect):
            return None
        return f"should be {' or '.join(_words(one) for one in expect)}, but is {_words(seen)}"
    if expect == seen and isinstance(expect, bool) == isinstance(seen, bool):
        return None
    return f"should be {_words(expect)}, but is {_words(seen)}"


def _words(value: Json) -> str:
    if value is None:
        return "unknown"
    return value if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else f"{value}"
