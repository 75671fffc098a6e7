"""OpenAssistant's conversation trees into rankings, demonstrations and prompts. Knows no file.

A tree is a user's question with several replies, each of which may go on with several questions, and so on; sibling
replies carry the rank that volunteers gave them (Köpf et al. 2023, https://arxiv.org/abs/2304.07327).
"""

from collections.abc import Iterator, Mapping
from typing import Any

from alignkit.data.turns import ROLES
from alignkit.records import Candidates, Comparison, Demonstration, Message, Messages, Prompt, Record

Node = Mapping[str, Any]


def from_tree(row: Node, as_: type[Record]) -> list[Record]:
    """All records of one tree: the ranking at every question, or all its replies, or the best, or the question."""
    root = row.get("prompt")
    if not isinstance(root, Mapping) or _role(root) != "user":
        raise ValueError("field `prompt` must hold the user's question, the root of the tree")
    if as_ is Comparison:
        return list(_rankings(root, ()))
    questions = list(_questions(root, ()))
    if as_ is Candidates:
        return list(_candidates(questions))
    if as_ is Demonstration:
        return list(_demonstrations(questions))
    if as_ is Prompt:
        return [Prompt(messages=tuple(_turn(node) for node in path), id=_id(path[-1])) for path in questions]
    raise ValueError(f"a conversation tree cannot be read as {as_.__name__}")


def _children(node: Node, role: str) -> list[Node]:
    replies = node.get("replies") or []
    if not isinstance(replies, list):
        raise ValueError(f"message {node.get('message_id')!r}: `replies` must be a list of messages")
    return [child for child in replies if _role(child) == role and not child.get("deleted")]


def _role(node: Any) -> str:
    if not isinstance(node, Mapping):
        raise ValueError(f"a message must be an object with `text`, `role` and `replies`, and is {node!r}")
    role = ROLES.get(str(node.get("role")))
    if role is None or not isinstance(node.get("text"), str):
        raise ValueError(f"message {node.get('message_id')!r}: needs `text`, and `role` prompter or assistant")
    if not isinstance(node.get("rank", 0), int | None):
        raise ValueError(f"message {node.get('message_id')!r}: `rank` must be a whole number from 0")
    return role


def _turn(node: Node, weight: float = 1.0) -> Message:
    return Message.model_validate({"role": _role(node), "content": node["text"], "weight": weight})


def _id(node: Node) -> str | None:
    return None if node.get("message_id") is None else str(node["message_id"])


def _rankings(question: Node, before: Messages) -> Iterator[Comparison]:
    """Rankings of the replies to `question` and below. A sibling set that is not ranked throughout is left out."""
    prompt = (*before, _turn(question))
    replies = _children(question, "assistant")
    ranks = _ranks(replies)
    if ranks is not None and len(set(ranks)) > 1:
        responses = tuple((_turn(reply),) for reply in replies)
        yield Comparison(prompt=prompt, responses=responses, ranks=ranks, id=_id(question))
    for reply in replies:
        for follow_up in _children(reply, "user"):
            yield from _rankings(follow_up, (*prompt, _turn(reply)))


def _ranks(replies: list[Node]) -> tuple[int, ...] | None:
    """The replies' ranks, 1 the best; None where not all of them have one."""
    ranks = [int(reply["rank"]) for reply in replies if reply.get("rank") is not None]
    order = sorted(set(ranks))
    return tuple(order.index(rank) + 1 for rank in ranks) if len(ranks) == len(replies) else None


def _questions(question: Node, before: tuple[Node, ...]) -> Iterator[tuple[Node, ...]]:
    """The path to every user turn of the tree, that turn included."""
    path = (*before, question)
    yield path
    for reply in _children(question, "assistant"):
        for follow_up in _children(reply, "user"):
            yield from _questions(follow_up, (*path, reply))


def _candidates(questions: list[tuple[Node, ...]]) -> Iterator[Candidates]:
    """All replies to each question that has several, ranked or not."""
    for path in questions:
        replies = _children(path[-1], "assistant")
        if len(replies) > 1:
            responses = tuple((_turn(reply),) for reply in replies)
            prompt = tuple(map(_turn, path))
            yield Candidates(prompt=prompt, responses=responses, ranks=_ranks(replies), id=_id(path[-1]))


def _best(question: Node) -> Node | None:
    """The best ranked of the replies; the first where none is ranked."""
    replies = _children(question, "assistant")
    ranked = [reply for reply in replies if reply.get("rank") is not None]
    return min(ranked, key=lambda reply: reply["rank"]) if ranked else next(iter(replies), None)


def _demonstrations(questions: list[tuple[Node, ...]]) -> Iterator[Demonstration]:
    """Conversations that together train the best answer to each question once; other answers are context."""
    paths = [(*path, best) for path in questions if (best := _best(path[-1])) is not None]
    to_train = {id(path[-1]) for path in paths}
    gone_on = {id(node) for path in paths for node in path[:-1]}
    for path in paths:
        if id(path[-1]) not in gone_on:
            turns = tuple(_turn(node, weight=float(id(node) in to_train or _role(node) == "user")) for node in path)
            to_train.difference_update(map(id, path))
            yield Demonstration(messages=turns, id=_id(path[-1]))
