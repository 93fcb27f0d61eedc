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


def one_line(text: str) -> str:
    """The same in one line."""
    return " ".join(printable(text).split())


def age(seconds: float) -> str:
    """A time in six characters: `0s`, `42s`, `3m05s`, `2h05m`, `12d04h`, `140d`."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3_600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86_400:
        return f"{whole // 3_600}h{whole % 3_600 // 60:02}m"
    days = whole // 86_400
    return f"{days}d{whole % 86_400 // 3_600:02}h" if days < 100 else f"{days}d"
