"""Records refuse what cannot be trained on. No files of data."""

from typing import Any

import pytest
from pydantic import ValidationError

from alignkit.records import Comparison, Demonstration, Feedback, Message, Prompt, Record, Scores, ToolCall

USER = {"role": "user", "content": "Hello?"}
ANSWER = {"role": "assistant", "content": "Hello."}


@pytest.mark.parametrize(
    ("record", "row", "fault"),
    [
        (Demonstration, {"messages": [USER]}, "no response"),
        (Demonstration, {"messages": [USER, {**ANSWER, "content": " "}]}, "no response"),
        (Demonstration, {"messages": [ANSWER]}, "empty prompt"),
        (Demonstration, {"messages": []}, "at least 1 item"),
        (Prompt, {"messages": [{**USER, "content": "\n"}]}, "empty prompt"),
        (Prompt, {"messages": [USER, ANSWER]}, "ends with the assistant's turn"),
        (Comparison, {"prompt": [USER], "responses": [[ANSWER]], "ranks": [1]}, "at least two"),
        (Comparison, {"prompt": [USER], "responses": [[ANSWER]] * 2, "ranks": [1, 1]}, "all responses are tied"),
        (Comparison, {"prompt": [USER], "responses": [[ANSWER]] * 2, "ranks": [1]}, "`ranks` holds 1 values for 2"),
        (Comparison, {"prompt": [USER], "responses": [[ANSWER], []], "ranks": [1, 2]}, r"`responses\[1\]` must end"),
        (Comparison, {"prompt": [USER], "responses": [[ANSWER], [USER]], "ranks": [1, 2]}, "no response"),
        (Comparison, {"prompt": [USER], "responses": [[ANSWER]] * 2, "ranks": [1, 2], "margins": [1]}, "`margins`"),
        (Comparison, {"prompt": [USER, ANSWER], "responses": [[ANSWER]] * 2, "ranks": [1, 2]}, "ends with the assis"),
        (Feedback, {"prompt": [USER], "response": [USER], "label": True}, "no response"),
        (Scores, {"total": [1.0], "parts": {"length": [1.0, 2.0]}}, "`length` holds 2 values for 1"),
        (Prompt, {"messages": [{"role": "human", "content": "x"}]}, "'system', 'user', 'assistant' or 'tool'"),
        (Prompt, {"messages": [USER], "extra": 1}, "Extra inputs"),
        (Prompt, {"messages": [{**USER, "weight": -1}]}, "greater than or equal to 0"),
    ],
)  # fmt: skip
def test_a_record_that_cannot_be_used_is_refused(record: type[Record], row: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValidationError, match=fault):
        record.model_validate(row)


def test_ties_and_empty_responses_are_allowed_in_a_ranking() -> None:
    silent = {**ANSWER, "content": ""}
    row = {"prompt": [USER], "responses": [[ANSWER], [ANSWER], [silent]], "ranks": [1, 1, 2]}
    comparison = Comparison.model_validate(row)
    assert comparison.ranks == (1, 1, 2)
    assert comparison.responses[2][0].empty


def test_a_call_without_text_is_an_answer() -> None:
    call = Message(role="assistant", tool_calls=(ToolCall(name="clock", arguments={"zone": "UTC"}),))
    demonstration = Demonstration(messages=(Message(role="user", content="Time?"), call))
    assert not call.empty
    assert Demonstration.model_validate_json(demonstration.model_dump_json()) == demonstration


def test_records_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Message(role="user").content = "x"  # pyright: ignore[reportAttributeAccessIssue]
