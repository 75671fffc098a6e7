"""Cuts text into passages for novels.yaml: python recipes/examples/cut_passages.py NOVELS STORIES.json FOLDER

NOVELS is a folder of texts (.txt, also .gz). A passage is paragraphs of one book up to some 1,500 characters, one to a
line; a story is one passage. Every twentieth passage is held out.
"""

import gzip
import json
import sys
from collections.abc import Iterable
from pathlib import Path

LEAST = 1500
"""Characters after which a passage ends with its paragraph."""
WRAPPED = 100
"""Characters of the longest line of a book whose paragraphs are broken into lines."""


def cut(novels: Path, stories: Path, folder: Path) -> None:
    """Write train.jsonl and heldout.jsonl (documents) into the folder."""
    found = [passage for path in sorted(novels.glob("*.txt*")) for passage in passages(read(path))]
    found += ["\n".join(story.split("\n\n")) for story in json.loads(stories.read_text(encoding="utf-8"))]
    folder.mkdir(parents=True, exist_ok=True)
    held_out = found[19::20]
    del found[19::20]
    for name, texts in (("train", found), ("heldout", held_out)):
        lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def read(path: Path) -> str:
    """A text, compressed or not, without the mark of its byte order."""
    content = path.read_bytes()
    return (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8-sig")


def passages(text: str) -> Iterable[str]:
    """The text's paragraphs, joined by line ends until they make a passage."""
    held: list[str] = []
    for paragraph in paragraphs(text.splitlines()):
        held.append(paragraph)
        if sum(map(len, held)) >= LEAST:
            yield "\n".join(held)
            held = []
    if held:
        yield "\n".join(held)


def paragraphs(lines: list[str]) -> Iterable[str]:
    """One a line where lines are long; else lines joined up to an empty or a short one."""
    width = max(map(len, lines))
    held: list[str] = []
    for line in [*lines, ""]:
        held += [line.strip()] if line.strip() else []
        if held and (width > WRAPPED or len(line) < 0.75 * width):
            yield " ".join(held)
            held = []


if __name__ == "__main__":
    cut(*map(Path, sys.argv[1:4]))
