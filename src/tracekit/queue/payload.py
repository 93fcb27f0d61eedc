"""Values as JSON that PostgreSQL can keep, checked before they meet a transaction."""

from __future__ import annotations

import json
import re

from pydantic import BaseModel

from tracekit.queue.model import MAX_PAYLOAD, Json, PayloadRefused

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_ESCAPED_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


def storable(value: Json, what: str) -> Json:
    """`value` as plain JSON data. Raises `PayloadRefused` where it is not JSON, holds what `jsonb` cannot (NUL,
    unpaired surrogates, NaN), or is larger than `MAX_PAYLOAD`.
    """
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise PayloadRefused(f"{what} is not JSON: {error}") from None
    if len(text) * 4 > MAX_PAYLOAD and len(text.encode(errors="surrogatepass")) > MAX_PAYLOAD:
        raise PayloadRefused(f"{what} is larger than {MAX_PAYLOAD} bytes", hint="pass a reference, not the data")
    if _UNSTORABLE.search(text) or _ESCAPED_NUL.search(text):
        raise PayloadRefused(f"{what} holds characters that PostgreSQL cannot store (NUL or unpaired surrogates)")
    return value


def plain_text(text: str, limit: int = 4_000) -> str:
    """`text` for a record, never refused: what cannot be stored is replaced, and what is too long is cut."""
    clean = _UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", text)
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"
