"""Cuts stories into records for stories.yaml: python recipes/examples/cut_stories.py STORIES.json FOLDER

An opening of three sentences is the prompt. Demonstrations continue it with the story's own next three; comparisons
rank these and two other stories' by how positive they sound. Every tenth story is held out.
"""

import json
import re
import sys
from pathlib import Path

from alignkit.records import Comparison, Completion, Demonstration, Message
from reward_models.lexicon import lexicon

SENTENCE = re.compile(r"[^.!?]+[.!?]+[\"”]?")


def cut(stories: list[str], folder: Path) -> None:
    """Write demonstrations.jsonl, comparisons.jsonl and heldout.jsonl (demonstrations) into the folder."""
    sentences = [SENTENCE.findall(story.replace("\n", " ")) for story in stories]
    parts = [("".join(s[:3]).strip(), "".join(s[3:6]).strip()) for s in sentences if len(s) >= 6]
    lines: dict[str, list[str]] = {"demonstrations": [], "comparisons": [], "heldout": []}
    for n, (opening, own) in enumerate(parts):
        prompt = (Message(role="user", content=opening),)
        texts = [own, *(parts[(n + step) % len(parts)][1] for step in (1, 2))]
        answers = [Message(role="assistant", content=text) for text in texts]
        demonstration = Demonstration(messages=(*prompt, answers[0]))
        lines["heldout" if n % 10 == 9 else "demonstrations"].append(demonstration.model_dump_json(exclude_none=True))
        ranks = rank(prompt, answers)
        if n % 10 != 9 and len(set(ranks)) > 1:
            ranked = Comparison(prompt=prompt, responses=tuple((answer,) for answer in answers), ranks=ranks)
            lines["comparisons"].append(ranked.model_dump_json(exclude_none=True))
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in lines.items():
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


def rank(prompt: tuple[Message, ...], answers: list[Message]) -> tuple[int, ...]:
    """1 for the most positive, equal ranks for equal moods."""
    moods = lexicon()([Completion(prompt=prompt, response=a, columns={}, ids=()) for a in answers]).total
    order = sorted(set(moods), reverse=True)
    return tuple(order.index(mood) + 1 for mood in moods)


if __name__ == "__main__":
    cut(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
