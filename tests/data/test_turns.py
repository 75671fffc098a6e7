"""Turns of other toolkits become messages, and what two conversations share is found as TRL finds it."""

from typing import Any

import pytest
from trl.data_utils import extract_prompt

from alignkit.data.turns import (
    from_transcript,
    is_transcript,
    shared_beginning,
    shared_text,
    to_message,
    to_messages,
    to_tools,
)
from alignkit.records import Message, Messages, ToolCall


def talk(*turns: str) -> Messages:
    """Messages from "u:text", "a:text" and "s:text"."""
    roles = {"u": "user", "a": "assistant", "s": "system"}
    return tuple(Message.model_validate({"role": roles[turn[0]], "content": turn[2:]}) for turn in turns)


@pytest.mark.parametrize(
    ("turn", "expected"),
    [
        ({"from": "human", "value": "x"}, {"role": "user", "content": "x"}),
        ({"from": "gpt", "value": "x"}, {"role": "assistant", "content": "x"}),
        ({"from": "observation", "value": "x"}, {"role": "tool", "content": "x"}),
        ({"role": "developer", "content": "x"}, {"role": "system", "content": "x"}),
        ({"role": "assistant", "content": "x", "reasoning_content": "y"},
         {"role": "assistant", "content": "x", "reasoning": "y"}),
        ({"role": "assistant", "content": "x", "thinking": "y", "name": None},
         {"role": "assistant", "content": "x", "reasoning": "y"}),
        ({"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]},
         {"role": "user", "content": "xy"}),
        ({"role": "assistant", "content": None, "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}]},
         {"role": "assistant", "tool_calls": (ToolCall(name="f", arguments={"a": 1}, id="1"),)}),
        ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"a": 1}}]},
         {"role": "assistant", "tool_calls": (ToolCall(name="f", arguments={"a": 1}),)}),
    ],
)  # fmt: skip
def test_a_turn_is_read(turn: dict[str, Any], expected: dict[str, Any]) -> None:
    assert to_message(turn, "messages[0]") == Message.model_validate(expected)


@pytest.mark.parametrize(
    ("turn", "fault"),
    [
        ("x", "field `m` must be an object"),
        ({"content": "x"}, "field `m.role` is missing"),
        ({"role": "user"}, "field `m.content` is missing"),
        ({"role": "user", "content": 3}, "field `m.content`: Input should be a valid string"),
        ({"role": "elf", "content": "x"}, "field `m.role`: Input should be 'system', 'user'"),
        ({"role": "user", "content": "x", "wieght": 0}, "field `m.wieght`: Extra inputs"),
        ({"role": "user", "content": [{"type": "image"}]}, "field `m.content` holds a part that is not text"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
         r"field `m.tool_calls\[0\].arguments` holds a string that is not JSON"),
        ({"role": "assistant", "tool_calls": ["f"]}, r"field `m.tool_calls\[0\]` must be an object"),
    ],
)  # fmt: skip
def test_a_turn_that_is_none_names_the_field(turn: Any, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        to_message(turn, "m")


def test_a_transcript_is_split_where_a_paragraph_names_the_speaker() -> None:
    text = (
        "\n\nHuman: Hi. Human: is a word\n\nin two\n\nAssistant: Yes \n\nAssistant: And more\n\nHuman: ?\n\nAssistant:"
    )
    expected = talk("u:Hi. Human: is a word\n\nin two", "a:Yes", "a:And more", "u:?", "a:")
    assert from_transcript(text) == expected
    assert from_transcript(text.strip()) == expected
    assert not is_transcript("Assistant: first")
    assert not is_transcript("The Human: a study")


def test_text_is_spoken_by_the_role_given() -> None:
    assert to_messages("x", "prompt", "user") == talk("u:x")
    assert to_messages({"from": "gpt", "value": "x"}, "chosen", "user") == talk("a:x")
    with pytest.raises(ValueError, match="field `prompt` must be text or a list"):
        to_messages(3, "prompt", "user")


def test_tools_come_as_a_list_or_as_json() -> None:
    assert to_tools('[{"name": "f"}]') == to_tools([{"name": "f"}]) == ({"name": "f"},)
    assert to_tools(None) is to_tools("") is to_tools([]) is None
    with pytest.raises(ValueError, match="must be a list of objects"):
        to_tools('{"name": "f"}')


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        (talk("u:a", "a:b", "u:c", "a:d"), talk("u:a", "a:b", "u:c", "a:e"), 3),
        (talk("u:a", "a:b"), talk("u:a", "a:c", "u:d", "a:e"), 1),
        (talk("u:a", "a:b"), talk("u:a", "a:b"), 1),
        (talk("u:a", "a:b"), talk("u:a", "a:b", "u:c", "a:d"), 1),
        (talk("s:a", "u:b", "a:c", "a:d"), talk("s:a", "u:b", "a:c", "a:e"), 2),
        (talk("u:a", "a:b"), talk("u:c", "a:b"), 0),
    ],
)
def test_what_two_conversations_share_ends_with_a_question(one: Messages, other: Messages, shared: int) -> None:
    assert shared_beginning([one, other]) == shared


def test_shared_turns_are_those_that_trl_finds() -> None:
    chosen, rejected = talk("s:x", "u:a", "a:b", "u:c", "a:d"), talk("s:x", "u:a", "a:b", "u:c", "a:e", "u:f", "a:g")
    as_trl = [[{"role": t.role, "content": t.content} for t in turns] for turns in (chosen, rejected)]
    found = extract_prompt({"chosen": as_trl[0], "rejected": as_trl[1]})
    assert len(found["prompt"]) == shared_beginning([chosen, rejected]) == 4


def test_shared_text_is_that_of_trl_and_ends_with_a_word() -> None:
    chosen, rejected = "The sky is blue.", "The sky is green."
    assert (
        chosen[: shared_text((chosen, rejected))] == extract_prompt({"chosen": chosen, "rejected": rejected})["prompt"]
    )
    assert shared_text(("It is colour", "It is cold")) == len("It is")
    assert shared_text(("Same", "Same")) == len("Same")
    assert shared_text(("Both  ", "Both  x")) == len("Both")
    assert shared_text(("ab", "ac")) == 0
