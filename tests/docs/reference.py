"""Writes the table of settings in docs/configuration.md from tracekit/config: `python -m tests.docs.reference`."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from tracekit.config import Settings

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"
BEGIN, END = "<!-- settings: begin (python -m tests.docs.reference) -->", "<!-- settings: end -->"

ALSO: dict[str, str] = {
    "ingress.port": "Where it listens. 0: any free port.",
    "home_assistant.url": "Its base address.",
    "home_assistant.token": "The access token. Empty: a task that needs Home Assistant goes to the DLQ, which says so.",
    "alertmanager.interval": "Between looks.",
    "ntfy.url": "The server.",
    "ntfy.token": "An access token, where the topic is protected.",
    "pushover.url": "The API.",
    "pushover.user": "The user's key.",
    "github.url": "The API; another one for GitHub Enterprise.",
    "github.token": "A token that may read public issues. Empty: 60 requests an hour.",
    "log_level": "The least level that is logged.",
    "principals": "Who there is, by name: `[principals.<name>]` with `role` `operator` (decides, sees everything),"
    " `household` (plain words) or `system` (a program). Setting it replaces all three.",
    "tokens": "Credentials of surfaces: `[[tokens]]`, each with `surface`, `principal`, `origin` and one of `sha256`,"
    " `env` and `file`. See below.",
}
"""What tracekit/config says at the class, or not at all."""


def sections() -> Iterator[tuple[str, str, type[BaseModel]]]:
    """Name, what it is, and the model of each section; the top level has no name."""
    yield "", "", Settings
    for name, field in Settings.model_fields.items():
        if is_section(field):
            assert isinstance(field.annotation, type)
            yield name, inspect.getdoc(field.annotation) or "", field.annotation


def is_section(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def described(model: type[BaseModel]) -> dict[str, str]:
    """The string under each field of a class."""
    (parsed,) = ast.parse(inspect.getsource(model)).body
    assert isinstance(parsed, ast.ClassDef)
    found: dict[str, str] = {}
    for statement, after in zip(parsed.body, [*parsed.body[1:], None], strict=True):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            text = ""
            if (
                isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
                and isinstance(after.value.value, str)
            ):
                text = " ".join(after.value.value.split())
            found[statement.target.id] = text
    return found


def default(field: FieldInfo) -> str:
    """The default as TOML has it."""
    return toml(field.get_default(call_default_factory=True))


def toml(value: Any) -> str:
    match value:
        case None:
            return "not set"
        case bool():
            return str(value).lower()
        case SecretStr():
            return toml(value.get_secret_value())
        case str() | Path():
            return f'"{value}"'
        case int() | float():
            return str(value)
        case timedelta():
            return f"{value.total_seconds():g}"
        case tuple():
            return f"[{', '.join(map(toml, value))}]"
        case dict():
            return ", ".join(f"{name}: {one.role}" for name, one in value.items())
    raise TypeError(type(value))


def rows(name: str, model: type[BaseModel]) -> Iterator[tuple[str, str, str]]:
    """Field, default and description. Raises where a description is missing, or is given in two places."""
    texts = described(model)
    for field_name, field in model.model_fields.items():
        if is_section(field):
            continue
        path = f"{name}.{field_name}" if name else field_name
        text = texts[field_name]
        if bool(text) == (path in ALSO):
            raise ValueError(f"{path} must be described once: in tracekit/config, or in ALSO of {__file__}")
        shown = default(field)
        if field.annotation == timedelta and shown != "not set":
            shown += " s"
        yield field_name, shown, text or ALSO[path]


def table() -> str:
    parts = []
    for name, about, model in sections():
        parts.append(f"### `[{name}]`\n\n{about}\n" if name else "### At the top of the file\n")
        lines = ["| setting | default | what it is, and what it trades |", "|---|---|---|"]
        lines += [f"| `{field}` | {code(shown)} | {cell(text)} |" for field, shown, text in rows(name, model)]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def code(text: str) -> str:
    return "" if text == '""' else text if text == "not set" else f"`{text}`"


def cell(text: str) -> str:
    return re.sub(r"(?<!\\)\|", r"\\|", text)


def page(text: str) -> str:
    """The page with its table as it should be."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{table()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
