"""Guidelines from a file, and the requests for critique and revision made of them. It does not know who answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from alignkit.batches import seed_of
from alignkit.chat import ChatFormat
from alignkit.config import InputError
from alignkit.marks import Items, Node, parse_yaml, read_text
from alignkit.records import Message

CRITIQUE = "Where does your last answer fall short of this guideline? Name the places. The guideline: {guideline}"
REVISION = (
    "Now answer my message before that again, so that the answer follows the guideline. Write the new answer and "
    "nothing else. The guideline: {guideline}"
)
"""What is said for a guideline that brings no words of its own."""


@dataclass(frozen=True, slots=True)
class Guideline:
    """What an answer should be like, as the two requests that are put to the model."""

    critique: str
    """Asks what is wrong with the last answer."""
    revision: str
    """Asks for a better one."""


def read_guidelines(path: str | Path) -> list[Guideline]:
    """The guidelines of a file: one a line, or a YAML list of texts and of {critique, revision}. Raises InputError."""
    path = Path(path)
    text = read_text(path, "guidelines: ")
    if path.suffix in (".yaml", ".yml"):
        found = _from_yaml(parse_yaml(text, str(path)), path)
    elif path.suffix in (".txt", ".md"):
        lines = [line.strip() for line in text.splitlines()]
        found = [_asked(line) for line in lines if line and not line.startswith("#")]
    else:
        raise InputError(f"guidelines: {path}: must end in .txt, .md (a guideline a line), .yaml or .yml (a list)")
    if not found:
        raise InputError(f"guidelines: {path}: holds no guideline; write one a line")
    return found


def _from_yaml(value: Any, path: Path) -> list[Guideline]:
    if not isinstance(value, Items):
        raise InputError(f"guidelines: {path}: must hold a list, each item a text or {{critique, revision}}")
    return [_item(item, mark) for item, mark in zip(value, value.marks, strict=True)]


def _item(item: Any, mark: str) -> Guideline:
    if isinstance(item, str) and item.strip():
        return _asked(item.strip())
    texts = dict(item) if isinstance(item, Node) else {}
    words = [text for text in texts.values() if isinstance(text, str) and text.strip()]
    if set(texts) != {"critique", "revision"} or len(words) < 2:
        raise InputError(f"guidelines: {mark}: an item is a text, or the two texts {{critique: …, revision: …}}")
    return Guideline(texts["critique"].strip(), texts["revision"].strip())


def _asked(guideline: str) -> Guideline:
    return Guideline(CRITIQUE.format(guideline=guideline), REVISION.format(guideline=guideline))


def drawn(guidelines: Sequence[Guideline], seed: int, prompt: int, rounds: int) -> list[Guideline]:
    """The guidelines of each round of one prompt, by its number: in a drawn order, again from the start at its end."""
    order = Random(seed_of(seed, "guidelines", prompt)).sample(range(len(guidelines)), len(guidelines))
    return [guidelines[order[turn % len(order)]] for turn in range(rounds)]


def turns_between(format: ChatFormat, guidelines: Sequence[Guideline], max_new_tokens: int) -> int:
    """The most tokens that stand between a prompt and its revision: answer, critique, and both requests."""
    asked, said = Message(role="user", content="a"), Message(role="assistant", content="a")
    alone = len(format.prompt([asked]))
    requests = [
        (asked, said, Message(role="user", content=one.critique), said, Message(role="user", content=one.revision))
        for one in guidelines
    ]
    whole = format.prompts([(conversation, None) for conversation in requests])
    return max(map(len, whole)) - alone + 2 * max_new_tokens
