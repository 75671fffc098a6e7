"""What stands more than once: records, and prompts. Knows no label and no file."""

from array import array
from collections.abc import Sequence

import numpy as np

from alignkit.data.checking.finding import MOST_SAMPLES, Finding, fine, of
from alignkit.data.checking.items import Item, fingerprint, plain
from alignkit.data.checking.mending import DUPLICATES, SHARED_PROMPTS
from alignkit.data.texts import whole
from alignkit.records import Document, Prompt


class Repeats:
    """Records alike in all but id, source and columns, and prompts up to case and spacing: 16 bytes a record."""

    def __init__(self) -> None:
        self._whole, self._prompts = array("Q"), array("Q")
        self._kind = ""

    def add(self, item: Item) -> None:
        record = item.record
        self._kind = type(record).__name__
        self._whole.append(fingerprint(whole(record.model_dump())))
        if not isinstance(record, Document):
            self._prompts.append(fingerprint(plain(item.prompt)))

    def findings(self) -> list[Finding]:
        surplus, first = repeated(self._whole)
        total = len(self._whole)
        numbers = {"count": surplus, "of": total}
        if surplus:
            share = surplus / total
            effect = "They weigh double, are learnt by heart, and may stand in training and validation at once."
            severity = "warning" if share > 0.01 else "note"
            measured = f"{of(surplus, total, 'records')} repeat an earlier one"
            found = [Finding("duplicates", severity, measured, effect, DUPLICATES, numbers, records=first)]
        else:
            found = [fine("duplicates", f"no record of {total:,} repeats another", **numbers)]
        if self._kind in (Document.__name__, Prompt.__name__):
            return found
        return found + self._shared_prompts()

    def _shared_prompts(self) -> list[Finding]:
        surplus, first = repeated(self._prompts)
        total = len(self._prompts)
        numbers = {"count": surplus, "of": total}
        if not surplus:
            return [fine("duplicate_prompts", f"no prompt of {total:,} repeats another", **numbers)]
        effect = "These prompts weigh more than the others; several answers to one prompt are wanted in rankings."
        measured = f"{of(surplus, total, 'records')} have the prompt of an earlier one"
        return [Finding("duplicate_prompts", "note", measured, effect, SHARED_PROMPTS, numbers, records=first)]


def repeated(fingerprints: Sequence[int]) -> tuple[int, tuple[int, ...]]:
    """How many of them stood before, and the places of the first few such and of what they repeat."""
    values = np.asarray(fingerprints, dtype=np.uint64)
    order = np.argsort(values, kind="stable")
    again = np.flatnonzero(values[order][1:] == values[order][:-1]) + 1
    later = np.sort(order[again])[:MOST_SAMPLES]
    shown: list[int] = []
    for place in later.tolist():
        start = int(np.searchsorted(values, values[place], sorter=order))
        shown += [int(order[start]), place]
    return len(again), tuple(dict.fromkeys(shown))
