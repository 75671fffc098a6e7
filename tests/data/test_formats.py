"""Every published form gives the record a reader of it would expect. Rows by hand; no files."""

import json
from typing import Any

import pytest

from alignkit.data.formats import FIELDS, FORMATS, detect, to_records
from alignkit.records import (
    Candidates,
    Comparison,
    Demonstration,
    Document,
    Feedback,
    Message,
    Prompt,
    Record,
    ToolCall,
)

U, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
B = {"role": "assistant", "content": "b"}
PAIR = "q -> a > b"
HUMAN, AGAIN = "\n\nHuman: q\n\nAssistant:", "\n\nHuman: r\n\nAssistant:"


def show(record: Record) -> str:
    """A record in one line: turns of a side by spaces, then their weights where any is not 1."""

    def line(messages: tuple[Message, ...]) -> str:
        return "|".join(
            ("!" if m.weight == 0 else "") + ("S:" if m.role == "system" else "") + m.content for m in messages
        )

    if isinstance(record, Comparison):
        order = sorted(zip(record.ranks, map(line, record.responses), strict=True))
        return f"{line(record.prompt)} -> {' > '.join(text for _, text in order)}"
    if isinstance(record, Feedback):
        return f"{line(record.prompt)} -> {line(record.response)} {'good' if record.label else 'bad'}"
    return record.text if isinstance(record, Document) else line(dict(record)["messages"])


ROWS: list[tuple[str, dict[str, Any] | str, type[Record], str]] = [
    ("trl", {"text": "t"}, Document, "t"),
    ("trl", "t", Document, "t"),
    ("trl", "t", Prompt, "t"),
    ("trl", {"messages": [U, A]}, Demonstration, "q|a"),
    ("trl", {"messages": [U, A]}, Prompt, "q"),
    ("trl", {"messages": [U]}, Prompt, "q"),
    ("trl", {"messages": [U, A], "label": False}, Feedback, "q -> a bad"),
    ("trl", {"prompt": "q"}, Prompt, "q"),
    ("trl", {"prompt": [U]}, Prompt, "q"),
    ("trl", {"prompt": "q", "completion": "a"}, Demonstration, "q|a"),
    ("trl", {"prompt": [U, A, U], "completion": [A]}, Demonstration, "q|!a|q|a"),
    ("trl", {"prompt": "q", "completion": "a", "label": True}, Feedback, "q -> a good"),
    ("trl", {"prompt": "q", "chosen": "a", "rejected": "b"}, Comparison, PAIR),
    ("trl", {"prompt": [U], "chosen": [A], "rejected": [B]}, Comparison, PAIR),
    ("trl", {"chosen": [U, A], "rejected": [U, B]}, Comparison, PAIR),
    ("trl", {"prompt": "q", "chosen": [U, A], "rejected": [U, B]}, Comparison, PAIR),
    ("trl", {"chosen": "q a", "rejected": "q b"}, Comparison, "q ->  a >  b"),
    ("trl", {"chosen": [U, A], "rejected": [U, B]}, Prompt, "q"),
    ("trl", {"chosen": [U, A], "rejected": [U, B]}, Demonstration, "!q|a"),
    ("trl", {"prompt": "q", "chosen": "", "rejected": "b"}, Comparison, "q ->  > b"),
    ("trl", {"chosen": f"{HUMAN} a", "rejected": f"{HUMAN} b"}, Comparison, PAIR),
    ("trl", {"chosen": f"{HUMAN} a", "rejected": HUMAN}, Comparison, "q -> a > "),
    ("trl", {"chosen": f"{HUMAN} a{AGAIN} c", "rejected": f"{HUMAN} b{AGAIN} c"}, Comparison, "q -> a|r|c > b|r|c"),
    ("trl", {"prompt": HUMAN, "chosen": " a", "rejected": " b"}, Comparison, PAIR),
    ("alignkit", {"prompt": [U], "responses": [[A], [B]], "ranks": [1, 2]}, Comparison, PAIR),
    ("alignkit", {"prompt": "q", "responses": ["b", "a"], "ranks": [2, 1], "margins": [0.5, 1]}, Comparison, PAIR),
    ("alignkit", {"prompt": "q", "response": "a", "label": True, "correction": "c"}, Feedback, "q -> a good"),
    ("dolly", {"id": 7, "instruction": "q", "context": "", "response": "a"}, Demonstration, "q|a"),
    ("dolly", {"instruction": "q", "context": "c", "response": "a"}, Demonstration, "q\n\nc|a"),
    ("alpaca", {"instruction": "q", "input": "c", "output": "a"}, Demonstration, "q\n\nc|a"),
    ("alpaca", {"instruction": "q", "input": "", "output": "a", "system": "s"}, Demonstration, "S:s|q|a"),
    ("sharegpt", {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"},
     Demonstration, "S:s|q|a"),
    ("sharegpt", {"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"},
                  "rejected": {"from": "gpt", "value": "b"}}, Comparison, PAIR),
    ("ultrafeedback", {"instruction": "q", "completions": [{"response": "b", "overall_score": 3},
                                                           {"response": "a", "overall_score": 9}]}, Comparison, PAIR),
    ("gsm8k", {"question": "q", "answer": "a\n#### 1,200"}, Demonstration, "q|a\n#### 1,200"),
    ("svamp", {"ID": "x", "Body": "b", "Question": "q?", "Answer": 51.0}, Prompt, "b. q?"),
    ("mt_bench", {"question_id": 1, "turns": ["q", "r"]}, Prompt, "q"),
    ("openai", {"input": {"messages": [U], "tools": []}, "preferred_output": [A], "non_preferred_output": [B]},
     Comparison, PAIR),
    ("harmbench", {"Behavior": "q", "BehaviorID": "b", "ContextString": "c"}, Prompt, "c\n\nq"),
    ("harmbench", {"Behavior": "q", "BehaviorID": "b"}, Prompt, "q"),
    ("trl", {"prompt": "q", "completion": "a", "label": "False"}, Feedback, "q -> a bad"),
    ("trl", {"messages": json.dumps([U, A])}, Demonstration, "q|a"),
    ("sharegpt", {"conversations": json.dumps([{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}])},
     Demonstration, "q|a"),
    ("trl", {"prompt": "q", "completion": "a", "messages": None, "rejected": None}, Demonstration, "q|a"),
    ("trl", {"prompt": "q", "completion": None, "chosen": "a", "rejected": "b"}, Comparison, PAIR),
    ("svamp", {"ID": "x", "Body": "b", "Question": "q?", "Answer": "51.0"}, Prompt, "b. q?"),
]  # fmt: skip


@pytest.mark.parametrize(("form", "row", "as_", "expected"), ROWS)
def test_a_row_is_recognised_and_read(form: str, row: Any, as_: type[Record], expected: str) -> None:
    assert detect(row) == form
    assert [show(record) for record in to_records(row, as_, form)] == [expected]


@pytest.mark.parametrize(
    "turn",
    [
        {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"x": 1}'}},
        {"role": "assistant", "annotations": [], "tool_calls": [{"type": "function", "function": {
            "name": "f", "arguments": '{"x": 1}'}}]},
    ],
)  # fmt: skip
def test_a_call_is_read_however_it_is_written(turn: dict[str, Any]) -> None:
    rows = {"messages": [U, turn]}, {"conversations": [{"from": "human", "value": "q"}, turn]}
    for row in rows:
        (record,) = to_records(row, Demonstration, detect(row) or "")
        called = dict(record)["messages"][-1]
        assert (called.role, called.content) == ("assistant", "")
        assert called.tool_calls == (ToolCall(name="f", arguments={"x": 1}),)


def test_every_form_that_is_recognised_can_be_named() -> None:
    assert {form for form, _ in FIELDS} | {"hh"} == FORMATS.keys()


def test_self_instruct_gives_one_demonstration_an_instance() -> None:
    row = {"id": "t", "instruction": "q", "instances": [{"input": "", "output": "a"}, {"input": "c", "output": "b"}]}
    found = to_records(row, Demonstration, "alpaca")
    assert [show(record) for record in found] == ["q|a", "q\n\nc|b"]
    assert [dict(record)["id"] for record in found] == ["t/0", "t/1"]


def test_our_own_ranking_also_holds_a_prompt_a_demonstration_and_candidates() -> None:
    row = {"id": "7", "prompt": "q", "responses": ["a", "b"], "ranks": [2, 1], "margins": [0, 1], "by": "x"}
    asked, said = (Message(role="user", content="q"),), [Message(role="assistant", content=text) for text in "ab"]
    common: dict[str, Any] = {"id": "7", "columns": {"by": "x"}}
    assert to_records(row, Prompt, "alignkit") == [Prompt(messages=asked, **common)]
    context = (asked[0].model_copy(update={"weight": 0.0}),)
    assert to_records(row, Demonstration, "alignkit") == [Demonstration(messages=(*context, said[1]), **common)]
    candidates = Candidates(prompt=asked, responses=tuple((one,) for one in said), **common)
    assert to_records(row, Candidates, "alignkit") == [candidates.model_copy(update={"ranks": (2, 1)})]
    del row["ranks"]
    assert to_records(row, Candidates, "alignkit") == [candidates]
    assert to_records(row | {"ranks": None}, Candidates, "alignkit") == [candidates]
    with pytest.raises(ValueError, match="`ranks` holds 1 values for 2 responses"):
        to_records(row | {"ranks": [1]}, Candidates, "alignkit")


def test_candidates_keep_the_ranks_that_published_rows_give_them() -> None:
    said = [("u", 3), ("v", 1), ("w", 3)]
    scored = {"instruction": "q", "completions": [{"response": text, "overall_score": n} for text, n in said]}
    assert ranks_of(scored, "ultrafeedback") == (1, 2, 1)
    del scored["completions"][1]["overall_score"]
    assert ranks_of(scored, "ultrafeedback") is None
    replies = [{"role": "assistant", "text": text, "rank": n, "replies": []} for text, n in said]
    tree = {"message_tree_id": "t", "prompt": {"role": "prompter", "text": "q", "replies": replies}}
    assert ranks_of(tree, "oasst") == (2, 1, 2)
    del replies[0]["rank"]
    assert ranks_of(tree, "oasst") is None
    assert ranks_of({"prompt": "q", "chosen": "a", "rejected": "b"}, "trl") == (1, 2)


def ranks_of(row: dict[str, Any], form: str) -> tuple[int, ...] | None:
    (record,) = to_records(row, Candidates, form)
    assert isinstance(record, Candidates)
    return record.ranks


def test_what_else_a_row_carries_is_kept_in_columns() -> None:
    row = {"id": 3, "prompt": "q", "solution": "42", "level": 2, "tools": [{"name": "f"}]}
    assert to_records(row, Prompt, "trl") == [
        Prompt(messages=(Message(role="user", content="q"),), tools=({"name": "f"},), id="3",
               columns={"solution": "42", "level": 2})
    ]  # fmt: skip


def test_the_reference_answer_is_the_result_alone() -> None:
    (prompt,) = to_records({"question": "q", "answer": "so\n#### 1,200"}, Prompt, "gsm8k")
    assert dict(prompt)["columns"] == {"answer": "1200"}
    (prompt,) = to_records({"Body": "b.", "Question": "q", "Answer": 51.0}, Prompt, "svamp")
    assert dict(prompt)["columns"] == {"answer": "51"}


def test_a_demonstrated_answer_is_the_reference_of_its_prompt() -> None:
    (prompt,) = to_records({"instruction": "q", "context": "", "response": "a"}, Prompt, "dolly")
    assert dict(prompt)["columns"] == {"answer": "a"}
    (prompt,) = to_records({"messages": [U, A], "answer": "own"}, Prompt, "trl")
    assert dict(prompt)["columns"] == {"answer": "own"}


@pytest.mark.parametrize(
    ("more", "margins"),
    [
        ({"score_chosen": 8, "score_rejected": 3.5}, (8.0, 3.5)),
        ({"metadata": {"score_chosen": 8, "score_rejected": 8}}, (8.0, 8.0)),
        ({"chosen_score": 1.0, "rejected_score": 2.0}, (1.0, 2.0)),
        ({"margin": 0.25}, (0.25, 0.0)),
        ({}, None),
    ],
)
def test_scores_become_margins_and_never_change_the_ranking(more: Any, margins: Any) -> None:
    (record,) = to_records({"prompt": "q", "chosen": "a", "rejected": "b", **more}, Comparison, "trl")
    assert isinstance(record, Comparison)
    assert (record.margins, record.ranks) == (margins, (1, 2))


@pytest.mark.parametrize("as_", [Document, Demonstration, Comparison, Prompt, Feedback])
def test_our_own_lines_come_back_as_they_went(as_: type[Record]) -> None:
    turns = {"messages": [U, {**A, "weight": 0.5, "reasoning": "r"}, U]} if as_ is Prompt else {"messages": [U, A]}
    rows: dict[type[Record], dict[str, Any]] = {
        Document: {"text": "t", "source": "s"},
        Comparison: {"prompt": [U], "responses": [[A], [B], [A]], "ranks": [1, 2, 2], "margins": [3, 1, 1]},
        Feedback: {"prompt": [U], "response": [A], "label": False, "correction": "c"},
    }
    extra = {} if as_ is Document else {"columns": {"k": [1, None]}, "tools": [{"name": "f"}]}
    record = as_.model_validate({**rows.get(as_, turns), "id": "i", **extra})
    row = record.model_dump(mode="json")
    assert to_records(row, as_, detect(row) or "") == [record]
    assert to_records(row, as_, "alignkit") == [record]


@pytest.mark.parametrize(
    ("row", "as_", "form", "fault"),
    [
        ({"prompt": "q"}, Comparison, "trl", "field `chosen` is missing; the row has prompt"),
        ({"prompt": "q"}, Demonstration, "trl", "field `completion` is missing; the row has prompt"),
        ({"prompt": "q", "chosen": "a"}, Comparison, "trl", "field `rejected` is missing; the row has prompt, chosen"),
        ({"prompt": "", "chosen": "a", "rejected": "b"}, Comparison, "trl", "empty prompt: `prompt`"),
        ({"prompt": [], "completion": "a"}, Demonstration, "trl", "empty prompt"),
        ({"prompt": "q", "completion": ""}, Demonstration, "trl", "no response: field `completion` is empty"),
        ({"prompt": "q", "completion": []}, Demonstration, "trl", "no response: field `completion` is empty"),
        ({"chosen": "x a", "rejected": "y a"}, Comparison, "trl", "empty prompt: fields `chosen` and `rejected`"),
        ({"chosen": [U], "rejected": [U]}, Comparison, "trl", r"no response: `responses\[0\]`"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": "x"}, Comparison, "trl", "field `margin` must be"),
        ({"messages": []}, Demonstration, "trl", "messages"),
        ({"messages": [U]}, Demonstration, "trl", "no response: the last turn of `messages` is the user's"),
        ({"messages": [U, {"role": "assistant"}]}, Demonstration, "trl", r"field `messages\[1\].content` is missing"),
        ({"messages": [U, A], "label": True}, Demonstration, "trl", "it is Feedback, not a Demonstration"),
        ({"messages": [U, A], "label": "yes"}, Feedback, "trl", "field `label` must be true"),
        ({"text": " "}, Document, "trl", "empty text: field `text` is empty"),
        ({"text": "t"}, Demonstration, "trl", "holds a Document, which cannot be read as a Demonstration"),
        ({"instruction": " ", "response": "a"}, Demonstration, "dolly", "empty prompt: field `instruction` is empty"),
        ({"instruction": "q", "output": ""}, Demonstration, "alpaca", "no response: field `output` is empty"),
        ({"instruction": "q", "output": 5}, Demonstration, "alpaca", "field `output` must be text, and is int"),
        ({"instruction": "q", "instances": []}, Demonstration, "alpaca", "no response: field `instances`"),
        ({"question": "q", "answer": " "}, Prompt, "gsm8k", "no response: field `answer` is empty"),
        ({"question": "", "answer": "a"}, Prompt, "gsm8k", "empty prompt: field `question` is empty"),
        ({"turns": []}, Prompt, "mt_bench", "empty prompt: field `turns`"),
        ({"prompt": "q", "responses": []}, Comparison, "alignkit", "no response: field `responses`"),
        ({"prompt": "q", "responses": ["a", "b"], "rank": [1, 2]}, Comparison, "alignkit",
         "field `ranks` is missing; the row has prompt, responses, rank"),
        ({"prompt": "q", "responses": ["a"], "ranks": [1]}, Comparison, "alignkit", "at least two `responses`"),
        ({"prompt": "q", "responses": ["a", "b"], "ranks": [1, 1]}, Comparison, "alignkit", "all responses are tied"),
        ({"instruction": "q", "completions": [{"response": "a", "overall_score": 1}] * 2}, Comparison, "ultrafeedback",
         "all responses are tied"),
        ([1], Prompt, "trl", "a row must be an object, and is list"),
    ],
)  # fmt: skip
def test_a_row_at_fault_names_the_field(row: Any, as_: type[Record], form: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        to_records(row, as_, form)
