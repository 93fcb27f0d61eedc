"""Text from elsewhere, as it may be shown to a person."""

from __future__ import annotations

import unicodedata


def printable(text: str) -> str:
    """`text` without what a screen would obey: control characters, and directional overrides, which make a text look
    like another. Newlines stay.
    """
    return "".join(
        character
        if character == "\n" or unicodedata.category(character) not in ("Cc", "Cf", "Cs")
        else "\N{REPLACEMENT CHARACTER}"
        for character in text.replace("\t", " ").replace("\u200d", "")
    )
