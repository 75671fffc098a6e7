"""One record as every measure sees it: where it stands, its prompt, its answers. Does not know what is measured."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

from alignkit.data.checking.finding import Sample, ends
from alignkit.data.ids import Ids
from alignkit.data.stream import entries_of
from alignkit.records import (
    Comparison,
    Demonstration,
    Document,
    Feedback,
    Message,
    Messages,
    Prompt,
    Record,
    last_question,
)


@dataclass(frozen=True, slots=True)
class Item:
    """One record of a source."""

    number: int
    """Among the source's records, from 0."""
    place: str
    """file:line."""
    record: Record
    prompt: str
    """The turns before the answers, each after its role; empty for a document."""
    answers: tuple[str, ...]
    """What the model is to say, in the record's order; none for a prompt. A document is its own only answer."""

    def sample(self) -> Sample:
        """The record as a sample: its prompt and its answer, of several the best and the worst."""
        answers = [ends(answer) for answer in self.answers]
        if isinstance(self.record, Comparison):
            ranks = self.record.ranks
            order = sorted(range(len(ranks)), key=ranks.__getitem__)
            answers = [f"[{ranks[place]}] {answers[place]}" for place in (order[0], order[-1])]
        if isinstance(self.record, Feedback):
            answers = [f"[{'good' if self.record.label else 'bad'}] {answers[0]}"]
        return Sample(self.place, (*([ends(self.prompt)] if self.prompt else []), *answers))


def item_of(number: int, place: str, record: Record) -> Item:
    """The view of one record."""
    if isinstance(record, Document):
        return Item(number, place, record, "", (record.text,))
    asked, answers = parts_of(record)
    return Item(number, place, record, said(asked), tuple(said(answer, roles=False) for answer in answers))


def items_of(path: str, as_: type[Record], format: str = "auto", split: str | None = None) -> Iterator[Item]:
    """Every record of a source; rows that cannot be read are passed over."""
    for taken in taken_of(path, as_, format, split):
        yield from taken.items


class Taken(NamedTuple):
    """What became of one row: its items, or why it has none."""

    file: str
    place: str
    """file:line."""
    items: list[Item]
    fault: str | None


def taken_of(path: str, as_: type[Record], format: str, split: str | None) -> Iterator[Taken]:
    """Every row of a source, as a stage takes it: an id may stand once in a file."""
    number = 0
    for source, line, _, records, fault in entries_of(path, as_, format, split, Ids()):
        place = f"{source.name}:{line}"
        if fault is None and not records:
            fault = f"holds no {as_.__name__}"
        found = [] if fault else [item_of(number + more, place, record) for more, record in enumerate(records)]
        number += len(found)
        yield Taken(source.name, place, found, fault)


def parts_of(record: Record) -> tuple[Messages, tuple[Messages, ...]]:
    """The turns before the answers, and the turns of each answer. Of a demonstration the last answer counts."""
    if isinstance(record, Demonstration):
        at = last_question(record.messages)
        return record.messages[:at], (record.messages[at:],)
    if isinstance(record, Comparison):
        return record.prompt, record.responses
    if isinstance(record, Feedback):
        return record.prompt, (record.response,)
    return (record.messages if isinstance(record, Prompt) else ()), ()


def said(messages: Messages, *, roles: bool = True) -> str:
    """All that turns say, reasoning and tool calls included."""
    return "\n\n".join(f"{turn.role}: {_text(turn)}" if roles else _text(turn) for turn in messages)


def _text(turn: Message) -> str:
    calls = [json.dumps([call.name, call.arguments], ensure_ascii=False) for call in turn.tool_calls or ()]
    return "\n".join(part for part in (turn.reasoning, turn.content, *calls) if part)


def fingerprint(*parts: str) -> int:
    """64 bits that depend on the texts alone; among a million, two different ones are alike once in 37 million."""
    joined = "\0".join(parts).encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(joined, digest_size=8).digest(), "little")


def plain(text: str) -> str:
    """The text up to case and spacing."""
    return " ".join(text.casefold().split())
