"""Conversations as texts: what a template prints of them, with every part found in it. It knows no token ids."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from alignkit.chat.contract import Chat, Template, unrendered
from alignkit.chat.shape import Shape
from alignkit.chat.tokens import Encoder
from alignkit.config import InputError
from alignkit.records import Message, ToolCall

logger = logging.getLogger(__name__)
Tools = Sequence[dict[str, Any]] | None


def as_turn(message: Message) -> dict[str, Any]:
    """A message as templates see it. Reasoning goes by both names that they use."""
    parts: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning:
        parts["reasoning_content"] = parts["thinking"] = message.reasoning
    if message.tool_calls:
        parts["tool_calls"] = [_call(call) for call in message.tool_calls]
    return parts | {key: value for key in ("name", "tool_call_id") if (value := getattr(message, key)) is not None}


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """A template, and the contract that nothing of a conversation is lost in it.

    What a template leaves out is an error, or, with on_unrendered "warn" (what a model sampled must be scored whatever
    it looks like), said once and counted.
    """

    template: Template
    shape: Shape
    encoder: Encoder
    on_unrendered: Literal["error", "warn"] = "error"
    counts: Counter[str] = field(default_factory=Counter)
    """What happened so far: sequences, merged_boundaries, control_text, thinking_off, unextended_turns, and
    "unrendered: …" by message part, "unrendered: assistant" being a turn that had to be taken as it was written."""

    def as_chat(self, messages: Sequence[Message]) -> Chat:
        """Messages as templates see them."""
        chat: Chat = []
        for message in messages:
            turn = as_turn(message)
            chat.append(self.encoder.mark(turn))
            self.counts["control_text"] += chat[-1] != turn
        return chat

    def asked(self, messages: Sequence[Message], tools: Tools) -> str:
        """The text of the conversation with the generation prompt."""
        chat = self.as_chat(messages)
        text = self.template.render(chat, tools, True)
        self._check(chat, len(chat), tools, (text, ""))
        return text

    def turn(self, chat: Chat, at: int, tools: Tools) -> tuple[str, str]:
        """The texts of the context and of the answer up to its end-of-turn token, with every part found in them."""
        try:
            context, answer, thinking_off = self.template.answer(chat, at, tools)
        except InputError as error:
            if self.on_unrendered == "error":
                raise
            context, answer, thinking_off = self.template.as_written(chat, at, tools)
            self._count_unrendered("assistant", str(error).partition("; ")[0])
        self.counts["thinking_off"] += thinking_off
        answer = self.shape.cut(answer, chat[at], self.encoder.specials)
        self._check(chat, at, tools, (context, answer))
        return context, answer

    def _check(self, chat: Chat, at: int, tools: Tools, texts: tuple[str, str]) -> None:
        for part in unrendered(self.template, chat, at, tools, texts):
            fault = f"the template {self.template.name} leaves out {part}"
            if self.on_unrendered == "error":
                raise InputError(
                    f"{fault}; take it out of the data, choose another chat_template, or have such conversations "
                    "counted with on_unrendered: warn"
                )
            self._count_unrendered(part, fault)

    def _count_unrendered(self, part: str, fault: str) -> None:
        if not self.counts[f"unrendered: {part}"]:
            logger.warning(f"{fault}; this and what else is like it is counted")
        self.counts[f"unrendered: {part}"] += 1


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"type": "function", "id": call.id or "", "function": function}
