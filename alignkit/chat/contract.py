"""The text side of the token contract: renders conversations and finds every part in them. It knows no token ids."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jinja2
from transformers.utils.chat_template_utils import render_jinja_template

from alignkit.config import InputError

Chat = list[dict[str, Any]]
"""Messages as a template sees them: dicts with role, content, and where present reasoning_content and tool_calls."""

_OPEN_THINK = re.compile(r"<think>\s*$")
_INLINE_THINK = re.compile(r"\s*(?:<think>)?(.*?)</think>(.*)", re.DOTALL)
_BROKEN = (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError)


@dataclass(frozen=True)
class Template:
    """A chat template with everything that its output depends on besides the messages."""

    name: str
    source: str
    tool_source: str
    """The template used when tools are given; the same text unless the tokenizer has a separate one."""
    tokens: Mapping[str, str]
    """Special tokens by the names templates use: bos_token, eos_token …"""
    kwargs: Mapping[str, Any]
    """The recipe's template_kwargs."""

    def render(self, chat: Chat, tools: Sequence[dict[str, Any]] | None, generation: bool, **more: Any) -> str:
        """The conversation as text. Raises InputError with the template's own words where it refuses."""
        try:
            texts, _ = render_jinja_template(
                [chat],
                tools=list(tools) if tools else None,
                chat_template=self.tool_source if tools else self.source,
                add_generation_prompt=generation,
                **{**self.tokens, **self.kwargs, **more},
            )
        except _BROKEN as error:
            raise InputError(f"the template {self.name} refuses this conversation: {error}") from error
        return texts[0]

    @cached_property
    def keeps_reasoning(self) -> bool:
        """Whether the reasoning of a final assistant turn is printed."""
        user, thought = {"role": "user", "content": "question"}, "thoughtprobe"
        turn = {"role": "assistant", "content": "answer", "reasoning_content": thought, "thinking": thought}
        try:
            return thought in "".join(self.answer([user, turn], 1, None)[:2])
        except InputError:
            return False

    def answer(self, chat: Chat, at: int, tools: Sequence[dict[str, Any]] | None) -> tuple[str, str, bool]:
        """The text before assistant turn `at` as it will be served, the turn as it will be generated with whatever
        the template prints after it, and whether that took `enable_thinking=False`. Raises InputError."""
        context = self.render(chat[:at], tools, True)
        full = self.render(chat[: at + 1], tools, False)
        if full.startswith(context):
            return context, full[len(context) :], False
        reasoning = chat[at].get("reasoning_content")
        if not reasoning:
            served = self.render(chat[:at], tools, True, enable_thinking=False)
            full_off = self.render(chat[: at + 1], tools, False, enable_thinking=False)
            if full_off.startswith(served):
                return served, full_off[len(served) :], True
        opened = _OPEN_THINK.search(context)
        if opened and full.startswith(context[: opened.start()]):
            if not reasoning:
                raise InputError(
                    f"the template {self.name} opens <think> before every answer, and the assistant message {at + 1} "
                    "has no reasoning; add `reasoning` to the data, choose another chat_template, or have it closed "
                    "and counted with on_unrendered: warn"
                )
            rest = re.sub(r"^\s*<think>.*?</think>\s*", "", full[opened.start() :], count=1, flags=re.DOTALL)
            return context, f"{reasoning.strip()}\n</think>\n\n{rest}", False
        same = next((i for i, (a, b) in enumerate(zip(context, full, strict=False)) if a != b), len(full))
        raise InputError(
            f"the template {self.name} prints the text before assistant message {at + 1} differently once the message "
            f"is there: {context[same : same + 40]!r} becomes {full[same : same + 40]!r}; choose another chat_template"
        )

    def as_written(self, chat: Chat, at: int, tools: Sequence[dict[str, Any]] | None) -> tuple[str, str, bool]:
        """What `answer` gives, for a turn that it refuses: the content as it is, after an open <think> is closed.
        Raises InputError where already the messages before it are refused."""
        context = self.render(chat[:at], tools, True)
        thought = chat[at].get("reasoning_content", "").strip()
        closed = f"{thought}\n</think>\n\n" if _OPEN_THINK.search(context) else ""
        return context, closed + chat[at]["content"], False


# ------------------------------------------------------------------------------------------- is everything there?


def _parts(message: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(field, text) of everything the message says; texts are stripped, as most templates strip them."""
    content, reasoning = message["content"], message.get("reasoning_content")
    inline = _INLINE_THINK.fullmatch(content) if message["role"] == "assistant" and "</think>" in content else None
    if inline and not reasoning:
        reasoning, content = inline.groups()
    if reasoning:
        yield "reasoning", reasoning.strip()
    yield "content", content.strip()
    for call in message.get("tool_calls", ()):
        yield "tool_calls.name", call["function"]["name"]
        for leaf in _leaves(call["function"]["arguments"]):
            yield "tool_calls.arguments", leaf


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield str(key)
            yield from _leaves(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _leaves(inner)
    elif value is not None:
        yield str(value).strip()


def _find(text: str, part: str, start: int) -> int:
    """Where `part` ends in text[start:], taken as it is or as JSON writes it; -1 where it is not there."""
    at = text.find(part, start)
    if at >= 0:
        return at + len(part)
    for ascii_only in (False, True):
        written = json.dumps(part, ensure_ascii=ascii_only)[1:-1]
        if (at := text.find(written, start)) >= 0:
            return at + len(written)
    if part in ("True", "False") and (at := text.find(part.lower(), start)) >= 0:
        return at + len(part)
    return -1


def find_parts(text: str, chat: Chat, skip: str = "") -> tuple[int, list[str]]:
    """Where the last part of the conversation ends in `text`, and "role.field" of every part that is not there.

    Messages must stand in their order, the parts of one message in any; a system message may stand anywhere.
    `skip` names a field that need not be there.
    """
    start, missing = 0, []
    for message in chat:
        role = message["role"]
        begin, reached = (0 if role == "system" else start), start
        for field, part in _parts(message):
            if field == skip:
                continue
            end = _find(text, part, begin)
            if end < 0:
                missing.append(f"{role}.{field}")
            elif role != "system":
                reached = max(reached, end)
        start = reached
    return start, missing


def missing_tools(text: str, tools: Sequence[dict[str, Any]] | None) -> list[str]:
    """["tools"] where the name, description or a parameter of some tool is not in `text`, else nothing."""
    for tool in tools or ():
        function = tool.get("function", tool)
        names = [function.get("name", ""), function.get("description", "")]
        names += list(function.get("parameters", {}).get("properties", {}))
        if any(_find(text, str(name).strip(), 0) < 0 for name in names):
            return ["tools"]
    return []


def unrendered(
    template: Template, chat: Chat, at: int, tools: Sequence[dict[str, Any]] | None, texts: tuple[str, str]
) -> list[str]:
    """ "role.field" of every part of chat[: at + 1] that stands in neither of texts = (context, answer), and "tools".

    Reasoning of earlier turns may be left out, as it is when served, unless the template never prints any.
    """
    _, missing = find_parts(texts[0], chat[:at], skip="reasoning" if template.keeps_reasoning else "")
    missing += find_parts(texts[1], chat[at : at + 1])[1] + missing_tools(texts[0], tools)
    return list(dict.fromkeys(missing))
