"""The texts of a record: which there are, and that replacing them touches nothing else."""

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from alignkit.data.texts import joined, mapped, texts_of
from alignkit.records import Comparison, Demonstration, Document, Feedback, Message, Prompt, ToolCall

ASK = Message(role="user", content="q", name="ann")
CALL = Message(
    role="assistant", content="a", reasoning="r", tool_calls=(ToolCall(name="f", arguments={"x": ["s", 1]}, id="c"),)
)
RECORDS = [
    (Document(text="t", source="s", id="i"), ["t"]),
    (Prompt(messages=(ASK,), tools=({"name": "f"},), columns={"answer": "w"}), ["q"]),
    (Demonstration(messages=(ASK, CALL)), ["q", "a", "r", "s"]),
    (Comparison(prompt=(ASK,), responses=((CALL,), (Message(role="assistant"),)), ranks=(1, 2)), [*"qars", ""]),
    (Feedback(prompt=(ASK,), response=(CALL,), label=True, correction="k"), [*"qars", "k"]),
]


def map_texts(record: Any, change: Callable[[str], str]) -> Any:
    return type(record).model_validate(mapped(record.model_dump(), change))


def test_every_text_that_a_model_reads_is_listed() -> None:
    for record, texts in RECORDS:
        assert texts_of(record) == texts
        assert joined(record.model_dump()) == "\n\n".join(text for text in texts if text)


def test_replacing_texts_keeps_names_numbers_and_the_rest() -> None:
    for record, texts in RECORDS:
        assert map_texts(record, lambda text: text) == record
        changed = map_texts(record, lambda text: f"<{text}>")
        assert texts_of(changed) == [f"<{text}>" for text in texts]
        assert map_texts(changed, lambda text: text[1:-1]) == record
    assert map_texts(RECORDS[1][0], str.upper).columns == {"answer": "W"}


def test_a_record_that_loses_its_prompt_is_refused() -> None:
    with pytest.raises(ValidationError, match="empty prompt"):
        map_texts(RECORDS[1][0], lambda text: "")
