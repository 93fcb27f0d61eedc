"""Whether what a workaround waits for has happened upstream.

Its condition is free text around one word:

- `closed`: the issue or pull request is.
- `merged`: the pull request is.
- `released`, after an issue or a pull request: a release came out after it was closed or merged.
- `released` with a version, as in `2.1 is released`: a release of that version or a later one is there. A prerelease
  counts only by its exact name.
- `released`, after `.../releases/tag/<tag>`: that release is there.
"""

from __future__ import annotations

import re

from tracekit.errors import TracekitError
from tracekit.queue.model import Json
from tracekit.workers.github import GitHub
from tracekit.workers.workarounds import Workaround

_WORD = re.compile(r"\b(closed|merged|released)\b", re.IGNORECASE)
_VERSION = re.compile(r"(?<![\w.#/+-])v?\d[\w.+-]*", re.IGNORECASE)
_SUBJECT = re.compile(
    r"https?://(?:www\.)?github\.com/(?P<repository>[\w-]+/[\w-][\w.-]*?)"
    r"(?:/(?P<kind>issues|pull|pulls)/(?P<number>\d{1,10})|/releases(?:/tag/(?P<tag>[^/?#\s]+)|/latest)?|\.git)?"
    r"/?(?:[?#]\S*)?",
    re.IGNORECASE,
)


class Unreadable(TracekitError):
    """A workaround that cannot be judged: its author has to say it otherwise."""


async def found_upstream(workaround: Workaround, github: GitHub) -> str | None:
    """Why the workaround can go, in words; None: not yet. Raises `Unreadable`, `GitHubError`."""
    subject = _SUBJECT.fullmatch(workaround.url)
    condition = _WORD.search(workaround.condition)
    if subject is None:
        raise Unreadable("the address is no issue, pull request or release on github.com")
    if condition is None:
        raise Unreadable("the condition says neither closed, merged nor released")
    word = condition[1].lower()
    if word == "released":
        version = _VERSION.search(workaround.condition)
        return await _released(subject, version[0].rstrip(".") if version else None, github)
    if not subject["number"]:
        raise Unreadable(f"a repository or a release is never {word}")
    upstream = await _issue(subject, github)
    if word == "merged":
        if subject["kind"].lower() == "issues" and upstream.get("state") == "closed" and not upstream["merged_at"]:
            raise Unreadable("an issue is closed, not merged")
        return f"it was merged at {upstream['merged_at']}" if upstream.get("merged_at") else None
    if upstream.get("state") != "closed":
        return None
    # "Not planned" is an answer too, but another one than the author hoped for: whoever cleans up must know.
    reason = f" as {upstream['reason'].replace('_', ' ')}" if upstream.get("reason") else ""
    return f"it was closed{reason} at {upstream['ended_at']}"


async def _issue(subject: re.Match[str], github: GitHub) -> dict[str, Json]:
    ask = github.issue if subject["kind"].lower() == "issues" else github.pull
    found = await ask(subject["repository"], subject["number"])
    if not found:
        raise Unreadable("GitHub shows no such issue or pull request: it is gone, private, or mistyped")
    return found


async def _releases(repository: str, github: GitHub) -> list[dict[str, Json]]:
    found = await github.releases(repository)
    if found is None:
        raise Unreadable("GitHub shows no such repository: it is gone, private, or mistyped")
    return found


async def _released(subject: re.Match[str], version: str | None, github: GitHub) -> str | None:
    repository = subject["repository"]
    if version:
        for release in await _releases(repository, github):
            if _reaches(release, version):
                return f"{release['tag']} was released at {release['at']}"
        return None
    if subject["tag"]:
        release = await github.release(repository, subject["tag"])
        return f"{release['tag']} was released at {release['at']}" if release else None
    if not subject["number"]:
        raise Unreadable("released needs a version, or the address of an issue, a pull request or one release")
    upstream = await _issue(subject, github)
    ended_at = upstream.get("merged_at") or (upstream.get("ended_at") if upstream.get("state") == "closed" else None)
    if not ended_at:
        return None
    later = [
        release
        for release in await _releases(repository, github)
        if not release["prerelease"] and release["at"] and release["at"] > ended_at
    ]
    # GitHub's times are all of one form, in UTC, so that they compare as text.
    first = min(later, key=lambda release: str(release["at"]), default=None)
    return f"it ended at {ended_at} and {first['tag']} was released after it, at {first['at']}" if first else None


def _reaches(release: dict[str, Json], version: str) -> bool:
    tag = str(release["tag"])
    if tag.lower().removeprefix("v") == version.lower().removeprefix("v"):
        return True
    has, wants = _numbers(tag), _numbers(version)
    return bool(has and wants and not release["prerelease"] and has >= wants)


def _numbers(version: str) -> tuple[int, ...]:
    """`chart-v2.10.0` is (2, 10, 0); of a version with more than numbers only its exact name counts: ()."""
    found = re.fullmatch(r"(?:.*[^\d.])?(\d{1,9}(?:\.\d{1,9}){0,9})", version)
    if found is None:
        return ()
    numbers = [int(number) for number in found[1].split(".")]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers) or (0,)
