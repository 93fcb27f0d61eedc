"""A stand-in for Home Assistant: the part of its REST API that tracekit uses, over a house that is made up.

This is not Home Assistant. It is here so that the demo and the tests need none, and it keeps to what the real one was
seen to do: a service called on an entity that does not exist answers `200 []`; a lock turns for a while, and one that
jams answers 200 too; each state carries the context of the call that changed it. It serves on this machine only.

    python -m tracekit.demo.home_assistant --port 8123 --token something
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import socket
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import click
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from ulid import ULID

Behaviour = Literal["well", "jams", "deaf"]
"""`well`: does as told. `jams`: a lock that gets stuck. `deaf`: says 200 and stays as it is."""

REACHED: dict[tuple[str, str], str] = {
    ("light", "turn_on"): "on",
    ("light", "turn_off"): "off",
    ("switch", "turn_on"): "on",
    ("switch", "turn_off"): "off",
    ("lock", "lock"): "locked",
    ("lock", "unlock"): "unlocked",
    ("lock", "open"): "open",
    ("cover", "open_cover"): "open",
    ("cover", "close_cover"): "closed",
    ("media_player", "media_play"): "playing",
    ("media_player", "media_pause"): "paused",
    ("alarm_control_panel", "alarm_disarm"): "disarmed",
    ("climate", "set_temperature"): "heat",
}
ON_THE_WAY = {"locked": "locking", "unlocked": "unlocking", "open": "opening", "closed": "closing"}


@dataclass(slots=True)
class Entity:
    """One thing in the house."""

    entity_id: str
    state: str
    attributes: dict[str, Any] = field(default_factory=dict)
    behaviour: Behaviour = "well"
    turning: timedelta = timedelta(0)
    """How long it takes from the call to the new state."""
    context: str = field(default_factory=lambda: str(ULID()))
    changed: datetime = field(default_factory=lambda: datetime.now(UTC))
    _next: tuple[float, str] | None = None

    def set(self, state: str, context: str) -> None:
        """The state changes at once."""
        self.state, self.context, self.changed = state, context, datetime.now(UTC)

    def call(self, state: str, context: str) -> bool:
        """A service leads to `state`, in its own time. Whether anything has changed by now."""
        if self.behaviour == "deaf" or (state == self.state and self._next is None):
            return False
        target = "jammed" if self.behaviour == "jams" else state
        if self.turning and state in ON_THE_WAY:
            self.set(ON_THE_WAY[state], context)
            self._next = (time.monotonic() + self.turning.total_seconds(), target)
        elif self.turning:
            self._next = (time.monotonic() + self.turning.total_seconds(), target)
            return False
        else:
            self._next = None
            self.set(target, context)
        return True

    def as_json(self) -> dict[str, Any]:
        """The state as Home Assistant writes it."""
        if self._next is not None and time.monotonic() >= self._next[0]:
            self.set(self._next[1], self.context)
            self._next = None
        at = self.changed.isoformat()
        return {
            "entity_id": self.entity_id,
            "state": self.state,
            "attributes": self.attributes,
            "last_changed": at,
            "last_reported": at,
            "last_updated": at,
            "context": {"id": self.context, "parent_id": None, "user_id": "5f0a1c6e8d9b4c3fa2e17b6d4c8e9f01"},
        }


def house() -> list[Entity]:
    """A small house."""
    return [
        Entity("light.kitchen", "off", {"friendly_name": "Kitchen", "supported_color_modes": ["onoff"]}),
        Entity("light.living_room", "off", {"friendly_name": "Living room", "supported_color_modes": ["onoff"]}),
        Entity(
            "lock.front_door",
            "locked",
            {"friendly_name": "Front door", "supported_features": 1},
            turning=timedelta(seconds=1),
        ),
        Entity("cover.garage_door", "closed", {"friendly_name": "Garage door", "device_class": "garage"}),
        Entity("climate.living_room", "heat", {"friendly_name": "Living room", "temperature": 19.0}),
        Entity("scene.movie_night", "unknown", {"friendly_name": "Movie night"}),
        Entity("media_player.living_room", "playing", {"friendly_name": "Living room"}),
        Entity("person.renee", "home", {"friendly_name": "Renee"}),
    ]


@dataclass(frozen=True, slots=True)
class Call:
    """A service call that came in."""

    domain: str
    service: str
    data: dict[str, Any]
    headers: dict[str, str]


class HomeAssistantStandIn:
    """The house and its API. `entities` and `calls` may be looked at and changed while it serves."""

    def __init__(self, *, token: str = "stand-in", entities: list[Entity] | None = None, port: int = 0) -> None:
        self.token = token
        self.entities = {entity.entity_id: entity for entity in (house() if entities is None else entities)}
        self.calls: list[Call] = []
        self.failing: int | None = None
        """Answer every request with this status instead."""
        self.silent = False
        """Take service calls, carry them out, and cut the connection before the answer."""
        self._port = port
        self._server: uvicorn.Server | None = None
        self._serving: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """Where it serves; the same after a stop and a start."""
        return f"http://127.0.0.1:{self._port}"

    def count(self, domain: str, service: str) -> int:
        """How often a service was called."""
        return sum((call.domain, call.service) == (domain, service) for call in self.calls)

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[HomeAssistantStandIn]:
        """Serve from `with` to its end."""
        await self.start()
        try:
            yield self
        finally:
            await self.stop()

    async def start(self) -> None:
        """Listen."""
        listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", self._port))
        # From here on a connection waits to be accepted, so nobody has to wait for the server to be up.
        listening.listen()
        self._port = listening.getsockname()[1]
        config = uvicorn.Config(
            _app(self), log_config=None, access_log=False, lifespan="off", ws="none", timeout_graceful_shutdown=1
        )
        self._server = _Server(config)
        self._serving = asyncio.create_task(self._server.serve(sockets=[listening]))

    async def stop(self) -> None:
        """Stop listening: from now on connections are refused."""
        if self._server is not None and self._serving is not None:
            self._server.should_exit = True
            await self._serving
            self._server = self._serving = None


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the process that this serves in."""
        yield


class _Cut(Response):
    """Closes the connection in place of an answer."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1000")]})
        raise ConnectionResetError


def _app(house: HomeAssistantStandIn) -> FastAPI:
    app = FastAPI(title="A stand-in for Home Assistant", docs_url=None, redoc_url=None, openapi_url=None)

    def refusal(request: Request) -> Response | None:
        if house.failing is not None:
            return Response(status_code=house.failing)
        given = request.headers.get("authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {house.token}".encode()):
            return Response("401: Unauthorized", status_code=401)
        return None

    @app.get("/api/")
    async def running(request: Request) -> Response:
        return refusal(request) or JSONResponse({"message": "API running."})

    @app.get("/api/states")
    async def states(request: Request) -> Response:
        return refusal(request) or JSONResponse([entity.as_json() for entity in house.entities.values()])

    @app.get("/api/states/{entity_id}")
    async def state(request: Request, entity_id: str) -> Response:
        if refused := refusal(request):
            return refused
        entity = house.entities.get(entity_id)
        if entity is None:
            return JSONResponse({"message": "Entity not found."}, status_code=404)
        return JSONResponse(entity.as_json())

    @app.post("/api/services/{domain}/{service}")
    async def call(request: Request, domain: str, service: str) -> Response:
        if refused := refusal(request):
            return refused
        data = await request.json()
        house.calls.append(Call(domain, service, data, dict(request.headers)))
        if (domain, service) not in {*REACHED, ("scene", "turn_on"), ("light", "toggle")}:
            return Response("400: Bad Request", status_code=400)
        context = str(ULID())
        wanted = data.get("entity_id", [])
        changed = []
        for entity_id in [wanted] if isinstance(wanted, str) else wanted:
            entity = house.entities.get(entity_id)
            if (
                entity is not None
                and entity_id.partition(".")[0] == domain
                and _do(entity, domain, service, data, context)
            ):
                changed.append(entity.as_json())
        return _Cut() if house.silent else JSONResponse(changed)

    return app


def _do(entity: Entity, domain: str, service: str, data: dict[str, Any], context: str) -> bool:
    if domain == "scene":
        return entity.call(datetime.now(UTC).isoformat(), context)
    if service == "toggle":
        return entity.call("off" if entity.state == "on" else "on", context)
    if service == "set_temperature" and entity.behaviour == "well":
        entity.attributes = {**entity.attributes, "temperature": float(data["temperature"])}
        entity.set("heat", context)
        return True
    return entity.call(REACHED[domain, service], context)


@click.command()
@click.option("--port", default=8123, show_default=True)
@click.option("--token", default="stand-in", show_default=True)
def main(port: int, token: str) -> None:
    """Serve a made-up house that speaks Home Assistant's REST API, until Ctrl-C."""

    async def serve() -> None:
        async with HomeAssistantStandIn(token=token, port=port).serving() as served:
            click.echo(f"a stand-in for Home Assistant serves at {served.url}")
            await asyncio.Event().wait()

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve())


if __name__ == "__main__":
    main()
