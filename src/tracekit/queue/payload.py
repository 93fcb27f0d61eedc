"""Values as JSON that PostgreSQL can keep, checked before they meet a transaction."""

from __future__ import annotations

import json
import re
from _json import make_encoder
from json.encoder import encode_basestring

from pydantic import BaseModel

from tracekit.queue.model import MAX_PAYLOAD, Json, PayloadRefused

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_ESCAPED_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")

# `json.JSONEncoder` makes one for each value, which takes as long as using it. It looks for no circles: they end in a
# RecursionError.
_encode = make_encoder(None, json.JSONEncoder().default, encode_basestring, None, ":", ",", False, False, False)


def storable_text(value: Json, what: str) -> str:
    """`value` as JSON text. Raises `PayloadRefused` where it is not JSON, holds what `jsonb` cannot (NUL, unpaired
    surrogates, NaN), or is larger than `MAX_PAYLOAD`.
    """
    try:
        # pydantic's classes answer `isinstance` in Python, which costs a tenth of all this.
        model = not isinstance(value, dict) and isinstance(value, BaseModel)
        text = "".join(_encode(value.model_dump(mode="json") if model else value, 0))
    except Exception as error:  # a model's serializers are anybody's code
        raise PayloadRefused(f"{what} is not JSON: {error}") from None
    if len(text) * 4 > MAX_PAYLOAD and len(text.encode(errors="surrogatepass")) > MAX_PAYLOAD:
        raise PayloadRefused(f"{what} is larger than {MAX_PAYLOAD} bytes", hint="pass a reference, not the data")
    if (not text.isascii() and _UNSTORABLE.search(text)) or ("\\u0000" in text and _ESCAPED_NUL.search(text)):
        raise PayloadRefused(f"{what} holds characters that PostgreSQL cannot store (NUL or unpaired surrogates)")
    return text


def storable(value: Json, what: str) -> Json:
    """`value` as plain JSON data, checked as `storable_text` does. Raises `PayloadRefused`."""
    storable_text(value, what)
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value


def plain_text(text: str, limit: int = 4_000) -> str:
    """`text` for a record, never refused: what cannot be stored is replaced, and what is too long is cut."""
    clean = _UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", text)
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"
