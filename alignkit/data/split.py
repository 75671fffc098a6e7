"""Who is held out for validation, by the hash of the conversation's beginning. Knows no file and no stage."""

import hashlib
import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from tempfile import SpooledTemporaryFile

import numpy as np
from numpy.typing import NDArray

from alignkit.config import InputError
from alignkit.records import Demonstration, Document, Messages, Prompt, Record

BLOCK = 1 << 16
"""Draws that are in memory at once."""


def beginning(record: Record) -> str:
    """What a record shares with all others of its conversation: the first user turn, or a document's whole text.

    Longer conversations that grew from one question, and answers to the same question, begin alike; a system prompt
    that many conversations share does not count. Case and spacing make no difference.
    """
    if isinstance(record, Document):
        text = record.text
    else:
        turns: Messages = record.messages if isinstance(record, Demonstration | Prompt) else dict(record)["prompt"]
        text = next((turn.content for turn in turns if turn.role == "user"), turns[0].content)
    return " ".join(text.casefold().split())


class SplitDraws:
    """A number in [0, 1) for each record, which depends on its beginning and the seed alone; those of many records are
    kept in a temporary file and read block by block."""

    def __init__(self, records: Iterable[Record], seed: int) -> None:
        self._count = 0
        self._file = SpooledTemporaryFile(max_size=8 * BLOCK)  # noqa: SIM115 (ends with the object)
        draws = (draw(beginning(record), seed) for record in records)
        while block := array("d", islice(draws, BLOCK)):
            self._file.write(block.tobytes())
            self._count += len(block)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[NDArray[np.float64]]:
        """Block by block, in the order of the records."""
        self._file.seek(0)
        while block := self._file.read(8 * BLOCK):
            yield np.frombuffer(block)


def held_out(draws: Sequence[SplitDraws], share: float) -> NDArray[np.bool_]:
    """[N] who is held out of all sources, by their draws. `share` below 1: that share of all beginnings; else at least
    that many records; 0: none.

    Records with the same beginning fall on the same side, and with a share a record's side does not change when others
    are added. At least one record stays on each side. Raises InputError where that cannot be.
    """

    def largest(below: float) -> float:
        return max(block.max(where=block < below, initial=0.0) for each in draws for block in each)

    held = np.zeros(sum(len(each) for each in draws), np.bool_)
    total = len(held)
    if share == 0 or not total:
        return held
    lowest, highest = min(block.min() for each in draws for block in each), largest(math.inf)
    if lowest >= highest:
        raise InputError(
            f"`data.validation`: all {total} records begin with the same question, so none can be held out; "
            "set validation: 0, or give more data"
        )
    if share >= total:
        raise InputError(f"`data.validation`: {share:g} records are to be held out of {total}; hold out fewer")
    last = max(lowest, largest(share)) if share < 1 else _smallest(draws, math.ceil(share))
    last = min(last, largest(highest))
    place = 0
    for each in draws:
        for block in each:
            np.less_equal(block, last, out=held[place : place + len(block)])
            place += len(block)
    return held


def _smallest(draws: Sequence[SplitDraws], count: int) -> float:
    """The last of the `count` smallest draws."""
    kept = np.zeros(0)
    for each in draws:
        for block in each:
            kept = np.sort(np.concatenate([kept, block]))[:count].copy()
    return float(kept[-1])


def draw(text: str, seed: int) -> float:
    """A number in [0, 1) that depends on the text and the seed alone."""
    digest = hashlib.sha256(f"{seed}\n{text}".encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def cut_document(document: Document, share: float) -> tuple[Document, Document]:
    """One long text, its last `share` (below 1) held out, cut at the end of a line where there is one near."""
    at = max(1, min(len(document.text) - 1, round(len(document.text) * (1 - share))))
    line = document.text.rfind("\n", at // 2, at) + 1
    at = line or at
    head, tail = document.text[:at], document.text[at:]
    return document.model_copy(update={"text": head}), document.model_copy(update={"text": tail})
