"""Guidelines and worked examples from a file, and what is asked by them. It does not know who answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from alignkit.batches import seed_of
from alignkit.chat import ChatFormat
from alignkit.config import InputError
from alignkit.marks import Items, Node, parse_yaml, read_text, short
from alignkit.records import Message, Messages
from reward_models.judge import CHOICES, Example

CRITIQUE = "Where does your last answer fall short of this guideline? Name the places. The guideline: {guideline}"
REVISION = (
    "Now answer my message before that again, so that the answer follows the guideline. Write the new answer and "
    "nothing else. The guideline: {guideline}"
)
"""What is said for a guideline that brings no words of its own."""
YAML = (".yaml", ".yml")
PARTS = {"guidelines", "examples"}
"""The lists of a YAML file that has worked examples."""
CRITIQUED = ("prompt", "answer", "guideline", "critique", "revision")
"""What a worked example of the critique stage holds."""


@dataclass(frozen=True, slots=True)
class Guideline:
    """What an answer should be like, as the two requests that are put to the model."""

    critique: str
    """Asks what is wrong with the last answer."""
    revision: str
    """Asks for a better one."""


def read_guidelines(path: str | Path) -> list[Guideline]:
    """The guidelines of a file: one a line; a YAML list of texts and of {critique, revision}; or {guidelines: such a
    list, examples: …}. Raises InputError."""
    path = Path(path)
    text = read_text(path, "guidelines: ")
    if path.suffix in YAML:
        items, _ = _parts(parse_yaml(text, str(path)), path)
        found = [_item(item, mark) for item, mark in zip(items, items.marks, strict=True)]
    elif path.suffix in (".txt", ".md"):
        lines = [line.strip() for line in text.splitlines()]
        found = [_asked(line) for line in lines if line and not line.startswith("#")]
    else:
        raise InputError(f"guidelines: {path}: must end in .txt, .md (a guideline a line), .yaml or .yml (a list)")
    if not found:
        raise InputError(f"guidelines: {path}: holds no guideline; write one a line")
    return found


def read_examples(path: str | Path) -> Messages:
    """The turns of the worked examples in a guidelines file, as critique and revision follow each other; none where it
    has none. Raises InputError."""
    path = Path(path)
    if path.suffix not in YAML:
        return ()
    _, examples = _parts(parse_yaml(read_text(path, "guidelines: "), str(path)), path)
    turns: list[Message] = []
    for item, mark in zip(examples, examples.marks, strict=True):
        texts = _example(item, f"guidelines: {mark}", CRITIQUED, "guideline")
        asked = _item(item["guideline"], item.marks["guideline"])
        said = (texts["prompt"], texts["answer"], asked.critique, texts["critique"], asked.revision, texts["revision"])
        turns += [_turn(number, text) for number, text in enumerate(said)]
    return tuple(turns)


def after_examples(examples: Messages, messages: Messages) -> Messages:
    """A conversation with worked examples before it, after its system message."""
    start = next((n for n, message in enumerate(messages) if message.role != "system"), len(messages))
    return (*messages[:start], *examples, *messages[start:])


def read_judge(path: str | Path, where: str, points: tuple[int, int] | None) -> tuple[str, tuple[Example, ...]]:
    """What a judge goes by: a text file, whole, or a YAML file {guidelines: a list of texts, examples: …}.

    An example is {prompt, answer, reasons, score} for a judge who gives `points`, else {prompt, first, second,
    reasons, better}. Raises InputError, which begins with `where`.
    """
    path = Path(path)
    text = read_text(path, f"{where}: ")
    value = parse_yaml(text, str(path)) if path.suffix in YAML else None
    if not isinstance(value, Node) or not value.keys() & PARTS:
        return text, ()
    items, examples = _parts(value, path, where)
    for item, mark in zip(items, items.marks, strict=True):
        if not isinstance(item, str) or not item.strip():
            raise InputError(f"{where}: {mark}: a judge's guideline is a text, and this is {short(item)}")
    if not items:
        raise InputError(f"{where}: {path}: holds no guideline; write a text a line under `guidelines:`")
    marked = zip(examples, examples.marks, strict=True)
    return "\n".join(item.strip() for item in items), tuple(_judgement(e, f"{where}: {m}", points) for e, m in marked)


def _judgement(item: Any, mark: str, points: tuple[int, int] | None) -> Example:
    if points is None:
        texts = _example(item, mark, ("prompt", "first", "second", "reasons", "better"))
        answers, verdict = (texts["first"], texts["second"]), texts["better"]
        right, form = verdict in CHOICES, " or ".join(CHOICES)
    else:
        texts = _example(item, mark, ("prompt", "answer", "reasons", "score"), "score")
        answers, score = (texts["answer"],), item["score"]
        right = type(score) in (int, float) and points[0] <= score <= points[1]
        verdict, form = f"{score}", f"a number from {points[0]} to {points[1]}"
    if not right:
        raise InputError(f"{mark}: `{'score' if points else 'better'}` must be {form}, and is {verdict!r}")
    return Example((_turn(0, texts["prompt"]),), answers, texts["reasons"], verdict)


def _example(item: Any, mark: str, fields: tuple[str, ...], other: str = "") -> dict[str, str]:
    """The texts of a worked example, which has these fields, all of them texts but `other`."""
    if not isinstance(item, Node) or set(item) != set(fields):
        raise InputError(f"{mark}: an example is {{{', '.join(fields)}}}, and this is {short(item)}")
    texts = [field for field in fields if field != other]
    for field in texts:
        if not isinstance(item[field], str) or not item[field].strip():
            at = f"{mark.rpartition(':')[0]}:{item.marks[field].rpartition(':')[2]}"
            raise InputError(f"{at}: `{field}` of an example must be a text, and is {short(item[field])}")
    return {field: item[field].strip() for field in texts}


def _parts(value: Any, path: Path, where: str = "guidelines") -> tuple[Items, Items]:
    """The lists of guidelines and of examples."""
    parts = {"guidelines": value} if isinstance(value, Items) else dict(value) if isinstance(value, Node) else {}
    lists = [parts.get("guidelines"), parts.get("examples", Items())]
    if not parts.keys() <= PARTS or not all(isinstance(part, Items) for part in lists):
        raise InputError(
            f"{where}: {path}: must hold a list, each item a text or {{critique, revision}}, or two lists: "
            "{guidelines: …, examples: …}"
        )
    return lists[0], lists[1]


def _item(item: Any, mark: str) -> Guideline:
    if isinstance(item, str) and item.strip():
        return _asked(item.strip())
    texts = dict(item) if isinstance(item, Node) else {}
    words = [text for text in texts.values() if isinstance(text, str) and text.strip()]
    if set(texts) != {"critique", "revision"} or len(words) < 2:
        raise InputError(f"guidelines: {mark}: an item is a text, or the two texts {{critique: …, revision: …}}")
    return Guideline(texts["critique"].strip(), texts["revision"].strip())


def _turn(number: int, text: str) -> Message:
    return Message(role="assistant" if number % 2 else "user", content=text)


def _asked(guideline: str) -> Guideline:
    return Guideline(CRITIQUE.format(guideline=guideline), REVISION.format(guideline=guideline))


def drawn(guidelines: Sequence[Guideline], seed: int, prompt: int, rounds: int) -> list[Guideline]:
    """The guidelines of each round of one prompt, by its number: in a drawn order, again from the start at its end."""
    order = Random(seed_of(seed, "guidelines", prompt)).sample(range(len(guidelines)), len(guidelines))
    return [guidelines[order[turn % len(order)]] for turn in range(rounds)]


def turns_between(
    format: ChatFormat, guidelines: Sequence[Guideline], max_new_tokens: int, examples: Messages = ()
) -> int:
    """The most tokens beside a prompt and its revision: answer, critique, both requests, and the worked examples."""
    asked, said = Message(role="user", content="a"), Message(role="assistant", content="a")
    alone = len(format.prompt([asked]))
    requests = [(*examples, asked, said, _turn(0, one.critique), said, _turn(0, one.revision)) for one in guidelines]
    whole = format.prompts([(conversation, None) for conversation in requests])
    return max(map(len, whole)) - alone + 2 * max_new_tokens
