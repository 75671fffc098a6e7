"""What a template prints between an answer and the next one, as token ids. It does not know what was sampled.

A model's own tokens are never rendered again: a stand-in takes the place of each answer, so that nothing a model can
write changes what stands around it. A template under which an answer would look different once the conversation
goes on is refused, since the model would be trained on a context that it is never served.
"""

from collections.abc import Sequence

from alignkit.chat.contract import find_parts
from alignkit.chat.format import ChatFormat, Tools
from alignkit.chat.shape import ANSWER, CALL, QUESTION, THOUGHT
from alignkit.config import InputError
from alignkit.records import Message, ToolCall

_PARAMETERS = {"type": "object", "properties": {"a": {"type": "string", "description": CALL}}}
PROBED = ({"type": "function", "function": {"name": CALL, "description": CALL, "parameters": _PARAMETERS}},)
"""The tools of a probe."""


def between(
    format: ChatFormat, prompt: Sequence[Message], turns: Sequence[Message], tools: Tools = None
) -> tuple[int, list[int]]:
    """The end-of-turn token of the last answer in `turns`, and the ids between it and the answer that comes next: the
    rest of that turn, the replies that `turns` end in, and the generation prompt.

    `turns` are what followed the prompt: answers, each with the replies to it. Raises InputError for a template that
    prints an answer differently once it is replied to.
    """
    before, end, rest = _rendered(format, prompt, turns, tools)
    (first, *_), ids = format.encoder.encode([end, rest], ["", before])
    return first, ids


def _rendered(
    format: ChatFormat, prompt: Sequence[Message], turns: Sequence[Message], tools: Tools, thought: str = ""
) -> tuple[str, str, str]:
    """The conversation up to the last answer's end, that end alone, and the rest with the generation prompt, as text;
    `thought` is the reasoning of the stand-ins."""
    template, at = format.template, len(prompt) + _last_answer(turns)
    chat = format.as_chat([*prompt, *_stand_ins(turns, thought)])
    context, specials = template.render(chat[:at], tools, True), format.encoder.specials
    whole, last = template.render(chat, tools, True), template.answer(chat[: at + 1], at, tools)[1]
    answer = format.shape.cut(last, chat[at], specials)
    end = next((end for end in format.shape.ends if answer.endswith(end)), "")
    if not end or not whole.startswith(context + answer):
        raise InputError(
            f"environment: the template {template.name} prints an answer differently once it is replied to: "
            f"{answer[-60:]!r} becomes {whole[len(context) :][:60]!r}; choose a chat_template that leaves earlier "
            "turns as they were (such as chatml, or those of TRL that end in _training)"
        )
    return context + answer, end, whole[len(context + answer) :]


def check_replies(format: ChatFormat, role: str, with_tools: bool) -> None:
    """Raise InputError unless the template goes on after a reply of `role`, prints it, and leaves the answer before it
    as it was, with reasoning and without; `with_tools`: where tools are given."""
    tools = PROBED if with_tools else None
    asked = (Message(role="user", content=QUESTION),)
    reply = Message.model_validate({"role": role, "content": QUESTION, **({"name": CALL} if role == "tool" else {})})
    thoughts = ["", THOUGHT] if format.template.keeps_reasoning else [""]
    for thought in thoughts:
        *_, rest = _rendered(format, asked, (Message(role="assistant", content=ANSWER), reply), tools, thought)
        if find_parts(rest, format.as_chat([reply]))[1]:
            raise InputError(f"environment: the template {format.template.name} leaves out what a {role} message says")


def check_calls(format: ChatFormat) -> None:
    """Raise InputError unless a tool call as the template writes it is read back from what a model generates."""
    call = ToolCall(name=CALL, arguments={"a": CALL})
    asked = Message(role="user", content=QUESTION)
    chat = format.as_chat(
        [asked, Message(role="assistant", tool_calls=(call.model_copy(update={"id": "call00001"}),))]
    )
    specials = format.encoder.specials
    text = format.shape.cut(format.template.answer(chat, 1, PROBED)[1], chat[1], specials)
    if format.shape.parse(text, specials).tool_calls != (call,):
        raise InputError(
            f"environment.kind: tools reads calls that are JSON between <tool_call> tags, and the template "
            f"{format.template.name} writes {text!r}; choose another chat_template (such as chatml)"
        )


def _last_answer(turns: Sequence[Message]) -> int:
    return max(n for n, turn in enumerate(turns) if turn.role == "assistant")


def _stand_ins(turns: Sequence[Message], thought: str) -> list[Message]:
    """The turns with a fixed text for each answer, and one call where a tool replied to it."""
    stands: list[Message] = []
    for turn, reply in zip(turns, (*turns[1:], None), strict=True):
        if turn.role != "assistant":
            stands.append(turn)
            continue
        calls: tuple[ToolCall, ...] | None = None
        if reply is not None and reply.role == "tool":
            name = reply.name if reply.name and reply.name.isidentifier() else CALL
            calls = (ToolCall(name=name, arguments={}, id=reply.tool_call_id or "call00001"),)
        content = "" if calls else ANSWER
        stands.append(Message(role="assistant", content=content, reasoning=thought or None, tool_calls=calls))
    return stands
