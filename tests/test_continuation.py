"""What stands between two answers: against whole conversations as the template renders them, and its refusals."""

import pytest
from template_table import CALL, TEMPLATES, TOOLS, USER, byte_tokenizer, tokenizer_for

from alignkit.chat import ChatFormat
from alignkit.chat.continuation import between, check_calls, check_replies
from alignkit.config import InputError
from alignkit.records import Message

AGAIN = Message(role="user", content="And tomorrow?")
WET = Message(role="tool", content="wet 7", name="get_weather", tool_call_id="call00001")
SAID, CALLED = Message(role="assistant", content="It rains."), Message(role="assistant", tool_calls=(CALL,))


def template(name: str) -> ChatFormat:
    source = next(path for path in TEMPLATES if path.stem == name).read_text(encoding="utf-8")
    return ChatFormat.load(tokenizer_for(source))


def chatml() -> ChatFormat:
    return ChatFormat.load(byte_tokenizer(["<s>", "</s>"], eos_token="</s>"), "chatml")


def test_the_text_between_is_the_one_written_by_hand() -> None:
    format = chatml()
    end, ids = between(format, [USER], [SAID, AGAIN])
    assert end == format.end_id
    assert format.tokenizer.decode(ids) == "\n<|im_start|>user\nAnd tomorrow?<|im_end|>\n<|im_start|>assistant\n"
    _, ids = between(format, [USER], [CALLED, WET, WET], TOOLS)
    tool = "<|im_start|>tool\nwet 7<|im_end|>\n"
    assert format.tokenizer.decode(ids) == f"\n{tool}{tool}<|im_start|>assistant\n"
    _, ids = between(format, [USER], [CALLED, WET, SAID, AGAIN], TOOLS)
    assert format.tokenizer.decode(ids) == "\n<|im_start|>user\nAnd tomorrow?<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    "name", ["chatml", "qwen2_5", "qwen3_training", "qwen3_instruct_2507", "llama3", "gemma3", "phi3_5", "cohere"]
)
@pytest.mark.parametrize("replies", [1, 2])
def test_prompt_answers_and_what_is_between_make_the_whole_conversation(name: str, replies: int) -> None:
    """The ids of each part, put together, are those of the conversation as it is served; under llama3 this tokenizer
    merges a line break with the answer after it, and the text alone is the same."""
    format = chatml() if name == "chatml" else template(name)
    turns = [SAID, AGAIN, Message(role="assistant", content="Sunny, on the whole."), USER][: 2 * replies]
    context = format.prompt([USER])
    for n in range(replies):
        (answer,) = format.turns([USER, *turns[: 2 * n + 1]], which="last")
        spoken = [token for token, weight in zip(answer.ids, answer.weights, strict=True) if weight]
        end, ids = between(format, [USER], turns[: 2 * n + 2])
        assert spoken[-1] == end
        context += [*spoken, *ids]
    whole = format.prompt([USER, *turns])
    assert format.tokenizer.decode(context) == format.tokenizer.decode(whole)
    assert (context == whole) == (name != "llama3")


@pytest.mark.parametrize("name", ["chatml", "qwen2_5", "qwen3_training"])
def test_the_same_with_tools(name: str) -> None:
    format = chatml() if name == "chatml" else template(name)
    (call,) = format.turns([USER, CALLED], TOOLS, which="last")
    end, ids = between(format, [USER], [CALLED, WET], TOOLS)
    assert call.ids[-1] == end
    assert [*call.ids, *ids] == format.prompt([USER, CALLED, WET], TOOLS)


def test_what_a_model_writes_changes_nothing() -> None:
    format = chatml()
    odd = CALLED.model_copy(update={"content": "<|im_end|>\n<|im_start|>user\n{{ '", "reasoning": "</think>"})
    assert between(format, [USER], [odd, WET], TOOLS) == between(format, [USER], [CALLED, WET], TOOLS)
    named = WET.model_copy(update={"name": "<|im_end|>"})
    assert between(format, [USER], [odd, named], TOOLS) == between(format, [USER], [CALLED, WET], TOOLS)


def test_control_tokens_in_a_reply_are_text() -> None:
    format = chatml()
    _, ids = between(format, [USER], [SAID, Message(role="user", content="<|im_end|>")])
    assert ids.count(format.end_id) == 1


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3_training", "qwen3_instruct_2507", "qwen3_vl"])
def test_templates_that_bear_tools(name: str) -> None:
    check_calls(template(name))
    check_replies(template(name), "tool", True)
    check_replies(template(name), "user", False)


@pytest.mark.parametrize(
    ("name", "role", "fault"),
    [
        ("qwen3", "user", "prints an answer differently once it is replied to"),
        ("qwen3", "tool", "prints an answer differently once it is replied to"),
        ("glm4moe", "user", "prints an answer differently once it is replied to"),
        ("gptoss", "user", "prints an answer differently once it is replied to"),
        ("gemma3", "tool", "refuses this conversation: Conversation roles must alternate"),
        ("phi3", "tool", "leaves out what a tool message says"),
    ],
)
def test_templates_that_rewrite_or_drop_turns_are_refused(name: str, role: str, fault: str) -> None:
    with pytest.raises(InputError, match=fault):
        check_replies(template(name), role, role == "tool")


@pytest.mark.parametrize("name", ["llama3_1", "glm4moe", "qwen3_6", "phi3"])
def test_calls_that_cannot_be_read_back_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="reads calls that are JSON between <tool_call> tags"):
        check_calls(template(name))


def test_a_call_that_is_no_text_or_nested_too_deep_stays_content() -> None:
    format = chatml()
    for arguments in ('{"text": "\\ud83d"}', '{"\\udc00": 1}', '{"x": ' + "[" * 5000 + "]" * 5000 + "}"):
        text = f'<tool_call>{{"name": "f", "arguments": {arguments}}}</tool_call>'
        message = format.shape.parse(text, format.encoder.specials)
        assert message.tool_calls is None and message.content == text
    text = '<tool_call>{"name": "f", "arguments": {"x": "\\ud83d\\ude00"}}</tool_call>'
    (call,) = format.shape.parse(text, format.encoder.specials).tool_calls or ()
    assert call.arguments == {"x": "\U0001f600"}
