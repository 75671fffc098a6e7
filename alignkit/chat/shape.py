"""What a template prints around an answer, found by rendering probes, and how to undo it. It knows no token ids."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from alignkit.chat.contract import Chat, Template, find_parts
from alignkit.config import InputError
from alignkit.records import Message, ToolCall

QUESTION, ANSWER, THOUGHT, CALL = "qprobe", "aprobe", "tprobe", "cprobe"
_CALLS = re.compile(r"\s*<tool_call>\s*(\{.*?\})\s*</tool_call>\s*", re.DOTALL)


@dataclass(frozen=True)
class Shape:
    """The fixed texts around an answer."""

    prompt: str
    """The context of a probe, which ends in the generation prompt."""
    ends: tuple[str, ...]
    """Texts of the end-of-turn tokens: that of a plain answer, then that of a tool call where it differs."""
    before_content: str
    """Written by the model itself between the generation prompt and a plain answer, such as an empty <think>."""
    around_reasoning: tuple[str, str] | None
    """Written before the reasoning, and between it and the content; None where the template drops reasoning."""

    def cut(self, answer: str, message: dict[str, Any], specials: re.Pattern[str]) -> str:
        """The answer up to and including its end-of-turn token. Where none is printed, a plain answer's is added."""
        start, _ = find_parts(answer, [message])
        found = [at + len(end) for end in self.ends if (at := answer.find(end, start)) >= 0]
        if found:
            return answer[: min(found)]
        special = specials.search(answer, start)
        return (
            answer[: special.end()] if special else answer.rstrip() + self.ends[-1 if "tool_calls" in message else 0]
        )

    def parse(self, text: str, specials: re.Pattern[str]) -> Message:
        """The assistant message in a generated answer (without its end-of-turn token). Tool calls are read where they
        are JSON between <tool_call> tags; in any other form they stay in the content."""
        reasoning = None
        if self.around_reasoning:
            before, between = (part.strip() for part in self.around_reasoning)
            thought, closed, rest = text.partition(between)
            if closed and thought.lstrip().startswith(before):
                reasoning = thought.lstrip().removeprefix(before).strip() or None
                text = rest.lstrip()
        text = text.removeprefix(self.before_content)
        calls: list[ToolCall] = []
        while found := _CALLS.search(text):
            try:
                call = json.loads(found.group(1))
                json.dumps(call, ensure_ascii=False).encode()  # half of a surrogate pair is no text
                calls.append(ToolCall(name=call["name"], arguments=call["arguments"]))
            except (ValueError, LookupError, TypeError, RecursionError):
                break
            text = text[: found.start()] + text[found.end() :]
        content = specials.sub("", text)
        return Message(role="assistant", content=content, reasoning=reasoning, tool_calls=tuple(calls) or None)


def _probe(template: Template, **assistant: Any) -> tuple[str, str]:
    """The context and the answer of a two-message conversation; empty where the template refuses it."""
    chat: Chat = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "", **assistant}]
    function = {"name": CALL, "description": CALL, "parameters": {"type": "object", "properties": {}}}
    tools = [{"type": "function", "function": function}] if "tool_calls" in assistant else None
    try:
        return template.answer(chat, 1, tools)[:2]
    except InputError:
        return "", ""


def probe(template: Template, specials: re.Pattern[str], fallback: str | None, known: Sequence[str]) -> Shape:
    """Find out what a template prints around answers. `fallback` is the end-of-turn token (as text) of a template
    that prints no special token after an answer, nor before the next user turn; `known` are the tokens at which the
    model's generation config stops. Raises InputError where no answer or no end is found."""
    user, tool = {"role": "user", "content": QUESTION}, {"role": "tool", "content": QUESTION, "name": CALL}
    plain: Chat = [user, {"role": "assistant", "content": ANSWER}]
    context, thoughtful = _probe(template, content=ANSWER, reasoning_content=THOUGHT, thinking=THOUGHT)
    around = None
    if THOUGHT in thoughtful and ANSWER in thoughtful:
        before, _, rest = thoughtful.partition(THOUGHT)
        around = (before, rest.partition(ANSWER)[0])
    plain_context, answer = _probe(template, content=ANSWER)
    before_content, _, tail = (answer or thoughtful).partition(ANSWER)
    if not answer:
        before_content = ""
    if ANSWER not in (answer or thoughtful):
        # Rendering once more raises the template's own reason; else it printed the turn without its text.
        template.answer(plain, 1, None)
        raise InputError(f"the template {template.name} leaves out assistant.content; choose another chat_template")
    first = _first(specials, tail) or _first(specials, _following(template, plain, user)) or fallback
    if first is None:
        raise InputError(
            f"the template {template.name} prints no end-of-turn token and the tokenizer has no eos_token; "
            "set model.eos_token"
        )
    ends = [first]
    call = {"type": "function", "id": "call00001", "function": {"name": CALL, "arguments": {CALL: CALL}}}
    called = _probe(template, tool_calls=[call])[1]
    if CALL in called and first not in (tail := called[called.rfind(CALL) :]):
        stops = sorted((tail.find(stop), stop) for stop in known if stop and stop in tail)
        asking: Chat = [user, {"role": "assistant", "content": "", "tool_calls": [call]}]
        end = stops[0][1] if stops else _first(specials, tail) or _first(specials, _following(template, asking, tool))
        ends += [end] if end and end != first else []
    return Shape(plain_context or context, tuple(ends), before_content, around)


def _first(specials: re.Pattern[str], text: str) -> str | None:
    found = specials.search(text)
    return found.group() if found else None


def _following(template: Template, chat: Chat, message: dict[str, Any]) -> str:
    """What stands between an answer and a message that follows it; empty where the template refuses the message."""
    try:
        text = template.render([*chat, message], None, False)
    except InputError:
        return ""
    text = text[: text.rfind(QUESTION)]
    return text[max(text.rfind(ANSWER), text.rfind(CALL), 0) :]
