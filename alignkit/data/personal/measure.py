"""Precision and recall of the search on texts whose personal data is marked. Does not know what the texts are.

    python -m alignkit.data.personal.measure FILE

A line of the file is a text, with {{kind|value}} around what should be found, \\n for a line's end, and `¦` for
nothing (inside keys, so that no scanner takes the file for a leak). Lines that begin with # are headings.
"""

import re
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from alignkit.config import InputError
from alignkit.data.personal import KINDS, Finding, find_personal
from alignkit.display import print_table

MARK = re.compile(r"\{\{(\w+)\|(.+?)\}\}", re.DOTALL)


class Score(NamedTuple):
    """Counts of one kind; a finding is right where kind, start and end are those marked."""

    marked: int
    found: int
    right: int

    @property
    def precision(self) -> float:
        """Which share of the findings is right; 1 where there are none."""
        return self.right / self.found if self.found else 1.0

    @property
    def recall(self) -> float:
        """Which share of the marked is found; 1 where there are none."""
        return self.right / self.marked if self.marked else 1.0


def labelled(path: Path) -> Iterator[tuple[str, list[Finding]]]:
    """(text, what should be found in it) of every line; raises InputError for a kind that does not exist."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line or line.startswith("# "):
            continue
        parts, marked, last, length = [], list[Finding](), 0, 0
        whole = line.replace("¦", "").replace("\\n", "\n")
        for match in MARK.finditer(whole):
            kind, value = match.groups()
            if kind not in KINDS:
                raise InputError(f"{path}, line {number}: {kind}: no such kind; choose among {', '.join(KINDS)}")
            parts += [whole[last : match.start()], value]
            length += match.start() - last
            marked.append(Finding(kind, length, length + len(value)))
            length, last = length + len(value), match.end()
        yield "".join([*parts, whole[last:]]), marked


def scores_of(path: Path) -> dict[str, Score]:
    """The score of every kind, and of all together as `all`."""
    marked, found = list[Finding](), list[Finding]()
    right: list[Finding] = []
    for text, expected in labelled(path):
        findings = find_personal(text)
        marked += expected
        found += findings
        right += set(findings) & set(expected)
    counts = {
        kind: Score(*(sum(finding.kind == kind for finding in items) for items in (marked, found, right)))
        for kind in KINDS
    }
    return {**counts, "all": Score(len(marked), len(found), len(right))}


def print_scores(path: Path) -> None:
    """The scores as a table, and every miss and false find under it."""
    rows = [
        [kind, str(score.marked), str(score.found), str(score.right), f"{score.precision:.3f}", f"{score.recall:.3f}"]
        for kind, score in scores_of(path).items()
    ]
    print_table(["kind", "marked", "found", "right", "precision", "recall"], rows)
    for text, expected in labelled(path):
        findings = find_personal(text)
        for what, items in (("missed", set(expected) - set(findings)), ("false", set(findings) - set(expected))):
            for kind, start, end in sorted(items):
                print(f"{what:7} {kind:12} {text[start:end]!r} in {text[:70]!r}")


if __name__ == "__main__":
    parser = ArgumentParser(prog="python -m alignkit.data.personal.measure", description=print_scores.__doc__)
    parser.add_argument("file", type=Path, help="texts with {{kind|value}} around what should be found")
    print_scores(parser.parse_args().file)
