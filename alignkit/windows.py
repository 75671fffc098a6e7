"""Pieces, or windows at random places, as examples in the place of whole documents. Knows no text and no model."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

import torch

from alignkit.batches import Example, Indexed
from alignkit.trie import TokenSequence


class Pieces(Indexed):
    """Every sequence of the documents as an example of its own, [number of pieces]."""

    def __init__(self, documents: Sequence[Example]) -> None:
        """Goes through all documents once; keeps a number of each."""
        self._documents = documents
        self._ends = list(accumulate(len(document) for document in documents))

    def __len__(self) -> int:
        return self._ends[-1]

    def at(self, index: int) -> Example:
        """One sequence alone."""
        number = bisect_right(self._ends, index)
        document = self._documents[number]
        return [document[index - self._ends[number]]]  # counted from the document's end


class Crops(Indexed):
    """Windows of `length` tokens of all documents one after the other, one for each place where a window can begin.

    A window is cut when it is asked for; its first token only conditions. Its column `bytes` is the mean of all
    windows. The documents are lists of pieces as `document_sequences` makes them, each of which begins with the last
    token of the one before. Where they hold fewer tokens than `length`, they are the only window.
    """

    def __init__(self, documents: Sequence[Example], length: int) -> None:
        """Goes through all documents once; keeps their tokens, 4 bytes each."""
        parts, size = list[torch.Tensor](), 0.0
        for document in documents:
            ids = [token for n, piece in enumerate(document) for token in (piece.ids[1:] if n else piece.ids)]
            parts.append(torch.tensor(ids, dtype=torch.int32))
            size += sum(piece.columns["bytes"] for piece in document)
        self._stream = torch.cat(parts)
        self._length = min(length, len(self._stream))
        self._columns = {"bytes": size * (self._length - 1) / max(1, len(self._stream) - 1)}

    def __len__(self) -> int:
        return len(self._stream) - self._length + 1

    def at(self, index: int) -> Example:
        """The window that begins at this token."""
        ids: list[int] = self._stream[index : index + self._length].tolist()
        return [TokenSequence(ids, [0.0] + [1.0] * (len(ids) - 1), columns=self._columns)]
