"""Turns as others write them (OpenAI, TRL, ShareGPT, HH transcripts) into messages. Knows neither files nor rows."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from alignkit.records import Message, Messages, Tools, last_question

ROLES = {
    **{name: "user" for name in ("user", "human", "prompter", "Human")},
    **{name: "assistant" for name in ("assistant", "gpt", "chatgpt", "bot", "model", "Assistant")},
    **{name: "tool" for name in ("tool", "observation", "function")},
    **{name: "system" for name in ("system", "developer")},
}
_NAMES = {"from": "role", "value": "content", "reasoning_content": "reasoning", "thinking": "reasoning"}
_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")


def first_fault(error: ValidationError, field: str = "") -> str:
    """The first of pydantic's faults in one line: `messages[1].role`: what is wrong."""
    fault = error.errors(include_url=False)[0]
    for part in fault["loc"]:
        field += f"[{part}]" if isinstance(part, int) else f".{part}" if field else str(part)
    message = fault["msg"].removeprefix("Value error, ")
    if not fault["loc"]:
        return message
    return f"field `{field}` is missing" if fault["type"] == "missing" else f"field `{field}`: {message}"


def to_message(value: Any, field: str) -> Message:
    """One turn from an object with role and content (or from and value). Raises ValueError naming `field`."""
    if not isinstance(value, Mapping):
        raise ValueError(f"field `{field}` must be an object with `role` and `content`")
    turn = {_NAMES.get(key, key): item for key, item in value.items() if item is not None and item != []}
    if turn.get("role") == "function_call":  # ShareGPT's: the call is the text
        turn |= {"role": "assistant", "function_call": from_json(str(turn.pop("content", "")), f"{field}.content")}
    if "function_call" in turn:
        turn["tool_calls"] = [turn.pop("function_call")]
    if isinstance(turn.get("role"), str):
        turn["role"] = ROLES.get(turn["role"], turn["role"])
    if isinstance(turn.get("content"), list):
        turn["content"] = "".join(_text_part(part, field) for part in turn["content"])
    if turn.get("tool_calls"):
        turn["tool_calls"] = _tool_calls(turn["tool_calls"], f"{field}.tool_calls")
    if "content" not in turn and not turn.get("tool_calls") and not turn.get("reasoning"):
        raise ValueError(f"field `{field}.content` is missing")
    try:
        return Message.model_validate(turn)
    except ValidationError as error:
        raise ValueError(first_fault(error, field)) from error


def _text_part(part: Any, field: str) -> str:
    if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
        raise ValueError(f"field `{field}.content` holds a part that is not text; only text is read")
    return part["text"]


def _tool_calls(value: Any, field: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"field `{field}` must be a list of objects with `name` and `arguments`")
    return [_tool_call(call, f"{field}[{index}]") for index, call in enumerate(value)]


def _tool_call(value: Any, field: str) -> Any:
    function = value.get("function") or {} if isinstance(value, Mapping) else None
    if not isinstance(function, Mapping):
        raise ValueError(f"field `{field}` must be an object with `name` and `arguments`")
    call = {key: item for key, item in {**value, **function}.items() if item is not None}
    arguments = call.get("arguments")
    if isinstance(arguments, str):
        call["arguments"] = from_json(arguments or "{}", f"{field}.arguments")
    return {key: item for key, item in call.items() if key not in ("type", "function")}


def from_json(text: str, field: str) -> Any:
    """Parse JSON that stands inside a string field."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"field `{field}` holds a string that is not JSON: {error}") from error


def says(role: str, content: str) -> Message:
    """One turn of plain text."""
    return Message.model_validate({"role": role, "content": content})


def turns_in(value: Any, field: str) -> Any:
    """What a field holds that is no plain text: in CSV, a list of turns is JSON in a string."""
    return from_json(value, field) if isinstance(value, str) and value.lstrip().startswith("[") else value


def to_messages(value: Any, field: str, role: str) -> Messages:
    """Turns from a list of them, one of them, an HH transcript, or plain text, which `role` speaks."""
    if isinstance(value, str):
        return from_transcript(value) if is_transcript(value) else (says(role, value),)
    if isinstance(value, Mapping):
        return (to_message(value, field),)
    if not isinstance(value, list):
        raise ValueError(f"field `{field}` must be text or a list of messages")
    return tuple(to_message(turn, f"{field}[{index}]") for index, turn in enumerate(value))


def to_tools(value: Any) -> Tools | None:
    """The tool list, which TRL also stores as a JSON string."""
    if isinstance(value, str):
        value = from_json(value, "tools") if value.strip() else None
    if not value:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise ValueError("field `tools` must be a list of objects, one JSON schema for each tool")
    return tuple(value)


def is_transcript(text: str) -> bool:
    """True for a dialogue as HH-RLHF writes it: paragraphs that begin with `Human:` or `Assistant:`."""
    found = _TURN.match(text)
    return found is not None and found.group(1) == "Human"


def from_transcript(text: str) -> Messages:
    """The turns of an HH-RLHF transcript. A last `Assistant:` that nothing follows is kept as an empty turn."""
    parts = _TURN.split(text)[1:]
    return tuple(says(ROLES[who], said.strip()) for who, said in zip(parts[::2], parts[1::2], strict=True))


def shared_beginning(conversations: Sequence[Messages]) -> int:
    """How many turns all conversations share before the first answer in which they differ."""
    shared = 0
    for turns in zip(*conversations, strict=False):
        if any(turn != turns[0] for turn in turns):
            break
        shared += 1
    return last_question(conversations[0][:shared])


def shared_text(texts: Sequence[str]) -> int:
    """Length of the beginning that all texts share, cut back to the end of a word."""
    pairs = zip(*texts, strict=False)
    cut = next((i for i, chars in enumerate(pairs) if len(set(chars)) > 1), min(map(len, texts)))
    while cut and not all(text[cut : cut + 1].isspace() or cut == len(text) for text in texts):
        cut -= 1
    return len(texts[0][:cut].rstrip())
