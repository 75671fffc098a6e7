"""Records to check, as short as they can be, and what a measure finds in them."""

from collections.abc import Sequence
from typing import Any

from alignkit.data.checking.check import Measure
from alignkit.data.checking.finding import NAMES, Finding
from alignkit.data.checking.items import Item, item_of
from alignkit.records import Comparison, Demonstration, Document, Feedback, Message, Prompt, Record


def says(role: Any, text: str) -> tuple[Message, ...]:
    return (Message(role=role, content=text),)


def pair(prompt: str, better: str, worse: str, **columns: Any) -> Comparison:
    return ranking(prompt, (better, worse), (1, 2), columns=columns)


def ranking(prompt: str, responses: Sequence[str], ranks: Sequence[int], **fields: Any) -> Comparison:
    answers = tuple(says("assistant", response) for response in responses)
    return Comparison(prompt=says("user", prompt), responses=answers, ranks=tuple(ranks), **fields)


def verdict(prompt: str, response: str, label: bool, **columns: Any) -> Feedback:
    return Feedback(prompt=says("user", prompt), response=says("assistant", response), label=label, columns=columns)


def demonstration(prompt: str, answer: str) -> Demonstration:
    return Demonstration(messages=says("user", prompt) + says("assistant", answer))


def prompt(text: str) -> Prompt:
    return Prompt(messages=says("user", text))


def document(text: str) -> Document:
    return Document(text=text)


def items(*records: Record) -> list[Item]:
    return [item_of(number, f"f:{number + 1}", record) for number, record in enumerate(records)]


def found(measure: Measure, *records: Record) -> dict[str, Finding]:
    """The findings by name."""
    for item in items(*records):
        measure.add(item)
    findings = {one.name: one for one in measure.findings()}
    assert findings.keys() <= set(NAMES)
    return findings
