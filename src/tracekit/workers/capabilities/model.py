"""`model.chat`: ask a configured model something. It reads and changes nothing, and it costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from tracekit.config import Settings
from tracekit.envelope import Name, Text
from tracekit.queue.model import Json
from tracekit.queue.payload import plain_text
from tracekit.workers.capabilities import Capability
from tracekit.workers.mode import Hop
from tracekit.workers.models import Message, chat, configured

LONGEST = 200_000
"""Characters of a question; the hop that carries it has room for a megabyte."""
LONGEST_ANSWER = 100_000
"""Characters of an answer that are kept."""


class Chat(BaseModel):
    """A question to one of the configured models."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    model: Name
    """As `[models.<name>]` calls it."""
    prompt: Annotated[Text, Field(min_length=1, max_length=LONGEST)]
    system: Annotated[Text, Field(max_length=LONGEST)] = ""
    max_tokens: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Of the answer. None: as configured."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    stream: bool = False
    """Whether the answer is read as it comes. What is said is the same."""


class ChatWithModel(Capability[Chat]):
    """Asks a model on any OpenAI-compatible server, such as LiteLLM's proxy, vLLM, or Ollama."""

    name = "model.chat"
    arguments_type = Chat

    def describe(self, arguments: Chat) -> str:
        """The model and what it is asked."""
        return f"ask the model {arguments.model}: {' '.join(arguments.prompt.split())}"

    def brief(self, arguments: Chat) -> str:
        """The model."""
        return f"ask the model {arguments.model}"

    def category(self, arguments: Chat) -> str:
        """`model`."""
        return "model"

    def destructive(self, arguments: Chat) -> bool:
        """Never: what it costs is the budget's business."""
        return False

    def repeatable(self, arguments: Chat) -> bool:
        """Yes: asking twice costs twice, and both are booked."""
        return True

    def missing(self, settings: Settings) -> str | None:
        """It needs a model."""
        return None if settings.models else "no model is configured: name one in [models]"

    async def run(self, hop: Hop[Any], arguments: Chat, idempotency_key: str) -> Json:
        """The answer, and what it used. Restricted data goes to no remote model (P8)."""
        configured(hop.services.settings, arguments.model)
        messages = [Message("system", arguments.system)] if arguments.system else []
        answer = await chat(
            hop,
            arguments.model,
            [*messages, Message("user", arguments.prompt)],
            max_tokens=arguments.max_tokens,
            temperature=arguments.temperature,
            stream=arguments.stream,
        )
        usage, booked = answer.usage, answer.booked
        return {
            "text": plain_text(answer.text, LONGEST_ANSWER),
            "model": answer.model,
            "finish_reason": answer.finish_reason,
            "tokens": {
                "input": usage.input,
                "cache_read": usage.cache_read,
                "cache_write": usage.cache_write,
                "output": usage.output,
                "reasoning": usage.reasoning,
            },
            "cost": None if booked.cost is None else str(booked.cost),
            "price_source": booked.price_source,
        }

    async def observe(
        self, hop: Hop[Any], arguments: Chat, expect: Mapping[str, Json], result: Json
    ) -> dict[str, Json]:
        """What was answered is what is known: it is not asked again."""
        answered = isinstance(result, dict) and bool(result.get("text"))
        return {arguments.model: {"answered": answered}}
