"""A conversation tree gives rankings at every depth, its best answers once each, and its questions. By hand."""

from typing import Any

import pytest

from alignkit.data.trees import from_tree
from alignkit.records import Comparison, Demonstration, Document, Message, Prompt


def node(name: str, *replies: dict[str, Any], rank: int | None = None, **more: Any) -> dict[str, Any]:
    role = "prompter" if name.startswith("q") else "assistant"
    rank_field = {} if rank is None else {"rank": rank}
    return {"message_id": name, "text": name, "role": role, "replies": list(replies), **rank_field, **more}


# q1 ─┬─ a1 (rank 1) ── q2 ─┬─ a4 (rank 1)
#     │                     └─ a5 (rank 0)
#     ├─ a2 (rank 0) ─┬─ q3 ── a6
#     │               └─ q4
#     ├─ a3 (rank 1)                      tied with a1
#     └─ a7 (rank 0, deleted)
TREE = {
    "message_tree_id": "q1",
    "prompt": node(
        "q1",
        node("a1", node("q2", node("a4", rank=1), node("a5", rank=0)), rank=1),
        node("a2", node("q3", node("a6")), node("q4"), rank=0),
        node("a3", rank=1),
        node("a7", rank=0, deleted=True),
    ),
}


def said(messages: tuple[Message, ...]) -> str:
    return " ".join(message.content for message in messages)


def test_rankings_stand_at_every_depth() -> None:
    rankings = [record for record in from_tree(TREE, Comparison) if isinstance(record, Comparison)]
    found = [(said(r.prompt), [said(a) for a in r.responses], r.ranks, r.id) for r in rankings]
    assert found == [
        ("q1", ["a1", "a2", "a3"], (2, 1, 2), "q1"),
        ("q1 a1 q2", ["a4", "a5"], (2, 1), "q2"),
    ]
    assert rankings[1].prompt[1].role == "assistant"


def test_each_best_answer_is_trained_once() -> None:
    demonstrations = [record for record in from_tree(TREE, Demonstration) if isinstance(record, Demonstration)]
    assert [said(d.messages) for d in demonstrations] == ["q1 a1 q2 a5", "q1 a2 q3 a6"]
    trained = [
        [t.content for t in d.messages if t.role == "assistant" and t.weight > 0] for d in demonstrations
    ]  # fmt: skip
    assert trained == [["a5"], ["a2", "a6"]]


def test_an_answer_that_two_conversations_share_is_context_in_the_second() -> None:
    tree = {"prompt": node("q1", node("a1", node("q2", node("a2")), node("q3", node("a3"))))}
    demonstrations = [record for record in from_tree(tree, Demonstration) if isinstance(record, Demonstration)]
    assert [[t.weight for t in d.messages] for d in demonstrations] == [[1, 1, 1, 1], [1, 0, 1, 1]]


def test_every_question_is_a_prompt() -> None:
    prompts = [record for record in from_tree(TREE, Prompt) if isinstance(record, Prompt)]
    assert [said(prompt.messages) for prompt in prompts] == ["q1", "q1 a1 q2", "q1 a2 q3", "q1 a2 q4"]


@pytest.mark.parametrize("ranks", [(None, None), (0, None), (0, 0)])
def test_siblings_without_a_whole_ranking_are_left_out(ranks: tuple[int | None, int | None]) -> None:
    tree = {"prompt": node("q1", *(node(f"a{i}", rank=rank) for i, rank in enumerate(ranks)))}
    assert from_tree(tree, Comparison) == []


def test_a_tree_with_a_fault_names_the_message() -> None:
    with pytest.raises(ValueError, match="message 'a1': needs `text`"):
        from_tree({"prompt": node("q1", {**node("a1"), "role": "elf"})}, Comparison)
    with pytest.raises(ValueError, match="cannot be read as Document"):
        from_tree(TREE, Document)
