"""Who asks: bearer tokens, each bound to a surface, a principal and an origin (P1)."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from collections.abc import Mapping
from dataclasses import dataclass

import structlog

from tracekit.config import ConfigError, Role, Settings, Token, read_secret
from tracekit.envelope import Origin
from tracekit.ingress.problems import Reason, Refused

log = structlog.get_logger()

HOW = "`tracekit token` makes one; send it as `Authorization: Bearer …`"


@dataclass(frozen=True, slots=True)
class Caller:
    """What a credential says of whoever holds it."""

    surface: str
    principal: str
    origin: Origin
    role: Role


class Tokens:
    """The configured tokens, as hashes. The tokens themselves are neither kept nor logged."""

    def __init__(self, settings: Settings, environment: Mapping[str, str] = os.environ) -> None:
        self._known: dict[bytes, Caller] = {}
        for token in settings.tokens:
            if token.sha256 is not None:
                digest = bytes.fromhex(token.sha256)
            else:
                value = _held(token, environment)
                if not value:
                    log.warning("ingress.token_missing", surface=token.surface, variable=token.env, file=token.file)
                    continue
                digest = hashlib.sha256(value.encode(errors="surrogateescape")).digest()
            caller = Caller(token.surface, token.principal, token.origin, settings.role(token.principal))
            if self._known.setdefault(digest, caller) != caller:
                raise ConfigError(
                    f"the surfaces {self._known[digest].surface} and {token.surface} share one token",
                    hint="a token says who asks: make one for each with `tracekit token`",
                )

    @property
    def surfaces(self) -> set[str]:
        """The surfaces that somebody may send from."""
        return {caller.surface for caller in self._known.values()}

    def caller(self, authorization: str | None) -> Caller:
        """Who holds the credential of an `Authorization` header. Raises `Refused`."""
        scheme, _, token = (authorization or "").partition(" ")
        token = token.strip()
        if not self._known:
            raise _unauthenticated("no token is configured, so nobody can be let in")
        if not authorization:
            raise _unauthenticated("the request carries no token")
        if scheme.lower() != "bearer" or not token:
            raise _unauthenticated("the Authorization header is not of the form `Bearer <token>`")
        # ASGI gives headers as latin-1; that way every byte comes back as it was sent.
        digest = hashlib.sha256(token.encode("latin-1", errors="replace")).digest()
        found: Caller | None = None
        for known, caller in self._known.items():
            if hmac.compare_digest(known, digest):
                found = caller
        if found is None:
            raise _unauthenticated("the token is not known", error='error="invalid_token"')
        return found


def _held(token: Token, environment: Mapping[str, str]) -> str:
    """The token itself, from wherever it is kept; empty where its variable or its file is. Raises `ConfigError`."""
    if token.file is not None:
        return read_secret(token.file, f"the token of surface {token.surface}")
    return environment.get(token.env or "", "").strip()


def bearer(authorization: str | None) -> str | None:
    """What a browser sends when its user was asked for a name and a password (RFC 7617), as a bearer token: it is the
    password, and the name says nothing. Anything else stays as it is.
    """
    scheme, _, given = (authorization or "").partition(" ")
    if scheme.lower() != "basic":
        return authorization
    try:
        _, _, password = base64.b64decode(given.strip(), validate=True).partition(b":")
    except ValueError:
        return authorization
    return f"Bearer {password.decode('latin-1')}"


def _unauthenticated(detail: str, *, error: str = "") -> Refused:
    challenge = 'Bearer realm="tracekit"' + (f", {error}" if error else "")
    return Refused(Reason.UNAUTHENTICATED, detail, hint=HOW, headers={"WWW-Authenticate": challenge})
