"""Credentials, wherever they turn up in text: in URLs, DSNs, headers, and the ones the program knows.

This is a net, not a licence: what must not be seen should not be put into spans or log lines in the first place.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping
from functools import lru_cache
from itertools import pairwise
from typing import Any, Final
from urllib.parse import quote

REDACTED: Final = "[redacted]"

# A name is taken apart at its separators and humps, so that `access_token`, `X-Api-Key` and `setCookie` are secret and
# `input_tokens` is not.
_HUMP: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_WORDS: Final = re.compile(r"[^a-z0-9]+")
_SECRET_WORDS: Final = frozenset(
    ["authorization", "password", "passwd", "pwd", "passphrase", "secret", "secrets", "apikey", "cookie", "cookies"]
)
# These are secret as the last word only: `auth_method` and `token.type` are not.
_SECRET_LAST_WORDS: Final = frozenset(["auth", "bearer", "credential", "credentials", "signature", "token"])
_SECRET_PAIRS: Final = (("api", "key"), ("private", "key"), ("access", "key"), ("signing", "key"))

_CREDENTIAL: Final = r"(?:token|key|password|passwd|pwd|passphrase|secret|signature|sig|auth|code|credential|session)"
_PATTERNS: Final = (
    # user:password@ before a host
    (re.compile(r"://[^\s/?#\"'<>]+@"), f"://{REDACTED}@"),
    # a parameter in a query or a fragment
    (re.compile(rf"([?&#;][\w.%-]*{_CREDENTIAL}=)[^&#;\s\"'<>]+", re.IGNORECASE), rf"\1{REDACTED}"),
    # a header
    (
        re.compile(
            r"(authorization[\"']?\s*[:=]\s*[\"']?)(?:(?:basic|bearer|digest|token)\s+)?[^\s\"',;]+", re.IGNORECASE
        ),
        rf"\1{REDACTED}",
    ),
    (re.compile(r"\b(bearer\s+)[\w.~+/=-]{8,}", re.IGNORECASE), rf"\1{REDACTED}"),
    # password=... of a DSN, "api_key": "..." of JSON
    (
        re.compile(
            r"((?:password|passwd|passphrase|secret|token|api[_-]?key)[\"']?\s*[:=]\s*)"
            r"(?:'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|[^\s,;&\"'()\[\]{}]+)",
            re.IGNORECASE,
        ),
        rf"\1{REDACTED}",
    ),
)

# Most text has none of what a pattern above cannot do without, and so is looked through once.
_HINT: Final = re.compile(r"[=:]|bearer", re.IGNORECASE)

_SHORTEST_ANYWHERE: Final = 6
"""Characters. A shorter secret is found only where it is the whole text: inside other words it would be everywhere."""

_guard = threading.Lock()
_whole: set[str] = set()
_anywhere: set[str] = set()
_anywhere_pattern: re.Pattern[str] | None = None


def register_secret(value: str) -> None:
    """From now on `value` is redacted in every log line and span, also percent-encoded and escaped as in JSON."""
    global _anywhere_pattern
    if not value:
        return
    with _guard:
        _whole.add(value)
        if len(value) >= _SHORTEST_ANYWHERE:
            _anywhere.update({value, quote(value, safe=""), json.dumps(value)[1:-1]})
            longest_first = sorted(_anywhere, key=len, reverse=True)
            _anywhere_pattern = re.compile("|".join(map(re.escape, longest_first)))


def redact_text(text: str) -> str:
    """`text` without credentials."""
    if text in _whole:
        return REDACTED
    if _anywhere_pattern is not None:
        text = _anywhere_pattern.sub(REDACTED, text)
    if _HINT.search(text):
        for pattern, replacement in _PATTERNS:
            text = pattern.sub(replacement, text)
    return text


@lru_cache(maxsize=4096)
def is_secret_name(name: str) -> bool:
    """Whether what goes by this name is a credential."""
    words = _words(name)
    return (
        not _SECRET_WORDS.isdisjoint(words)
        or not _SECRET_LAST_WORDS.isdisjoint(words[-1:])
        or any(pair in _SECRET_PAIRS for pair in pairwise(words))
    )


def _words(name: str) -> list[str]:
    return [word for word in _WORDS.split(_HUMP.sub("_", name).lower()) if word]


def redact_value(name: str, value: Any) -> Any:
    """`value`, which goes by `name`, without credentials, inside dictionaries and sequences too.

    Numbers stay, but under a secret name, because a PIN is one; a number called token is a lease's fencing token.
    What is neither plain data nor text becomes its redacted `repr`.
    """
    if value is None or isinstance(value, bool):
        return value
    if is_secret_name(name) and not (isinstance(value, int | float) and _words(name)[-1] == "token"):
        return REDACTED
    if isinstance(value, int | float):
        return value
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, Mapping):
        return {str(key): redact_value(str(key), inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [redact_value("", inner) for inner in value]
    return redact_text(repr(value))
