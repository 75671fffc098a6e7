"""Cuts stories into records for stories.yaml: python recipes/examples/cut_stories.py STORIES.json FOLDER

An opening of three sentences is the prompt. Demonstrations continue it with the story's own next three; comparisons
rank these and two other stories' by how positive they sound. Every tenth story is held out of both.
"""

import json
import re
import sys
from pathlib import Path
from typing import Literal

from alignkit.records import Comparison, Completion, Demonstration, Message
from reward_models.lexicon import lexicon

SENTENCE = re.compile(r"[^.!?]+[.!?]+[\"”]?")


def cut(stories: list[str], folder: Path) -> None:
    """Write demonstrations.jsonl, comparisons.jsonl and heldout.jsonl (demonstrations) into the folder."""
    sentences = [SENTENCE.findall(story.replace("\n", " ")) for story in stories]
    parts = [("".join(s[:3]).strip(), "".join(s[3:6]).strip()) for s in sentences if len(s) >= 6]
    train = [part for n, part in enumerate(parts) if n % 10 != 9]
    files = {"demonstrations": shown(train), "comparisons": ranked(train), "heldout": shown(parts[9::10])}
    folder.mkdir(parents=True, exist_ok=True)
    for name, records in files.items():
        rows = "".join(record.model_dump_json(exclude_none=True) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(rows, encoding="utf-8")


def shown(parts: list[tuple[str, str]]) -> list[Demonstration]:
    """Each opening with its own continuation."""
    return [Demonstration(messages=(said("user", opening), said("assistant", own))) for opening, own in parts]


def ranked(parts: list[tuple[str, str]]) -> list[Comparison]:
    """Each opening with its own continuation and those of the two after it, unless all sound alike."""
    found: list[Comparison] = []
    for n, (opening, own) in enumerate(parts):
        prompt = (said("user", opening),)
        texts = [own, *(parts[(n + step) % len(parts)][1] for step in (1, 2))]
        answers = [said("assistant", text) for text in texts]
        ranks = rank(prompt, answers)
        if len(set(ranks)) > 1:
            found.append(Comparison(prompt=prompt, responses=tuple((one,) for one in answers), ranks=ranks))
    return found


def said(role: Literal["user", "assistant"], text: str) -> Message:
    return Message(role=role, content=text)


def rank(prompt: tuple[Message, ...], answers: list[Message]) -> tuple[int, ...]:
    """1 for the most positive, equal ranks for equal moods."""
    moods = lexicon()([Completion(prompt=prompt, response=a, columns={}, ids=()) for a in answers]).total
    order = sorted(set(moods), reverse=True)
    return tuple(order.index(mood) + 1 for mood in moods)


if __name__ == "__main__":
    cut(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
