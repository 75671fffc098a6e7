"""New merges for a BPE tokenizer, for given words or learned from texts. Knows no model and no files.

They come after all merges that it has, so what it makes of a text stays as it is but for old tokens that new ones
join, and every new token is reached (continued BPE training: Purason et al. 2025, arXiv:2512.03989).
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from heapq import heapify, heappop, heappush
from itertools import pairwise

from tokenizers import Regex, Tokenizer, pre_tokenizers

Pair = tuple[str, str]
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_SPACED = pre_tokenizers.Split(Regex(r"▁+(?=▁[^▁])|▁?[\p{L}\p{M}]+|▁?\p{N}+|▁?[^▁\p{L}\p{M}\p{N}]+|▁+"), "isolated")
"""Words where the tokenizer itself has no borders between them, as sentencepiece's have not."""


def takes_merges(tokenizer: Tokenizer) -> bool:
    """Whether it is byte-pair encoding whose tokens are written as they are spelled."""
    model = json.loads(tokenizer.to_str())["model"]
    marks = ("continuing_subword_prefix", "end_of_word_suffix", "dropout")
    return model["type"] == "BPE" and not any(model.get(name) for name in marks)


def words_of(tokenizer: Tokenizer, text: str) -> list[str]:
    """The parts of a text that no token crosses, in the letters of the tokenizer's vocabulary."""
    if tokenizer.normalizer is not None:
        text = tokenizer.normalizer.normalize_str(text)
    return [word for word, _ in (tokenizer.pre_tokenizer or _SPACED).pre_tokenize_str(text)]


class Merges:
    """What is to be added to one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.ranks: dict[Pair, int] = {}
        """The new merges, by the order in which they apply."""
        vocabulary = tokenizer.get_vocab()
        self.old = vocabulary
        """Ids of the tokens that were there."""
        self.new: dict[str, int] = {}
        """Ids of the tokens that the merges make."""
        self.pieces: dict[str, tuple[int, ...]] = {}
        """The old tokens that each new one joins."""
        self._next = 1 + max(vocabulary.values())

    def split(self, word: str) -> list[str]:
        """The tokens of one of `words_of`, new ones included."""
        pieces = [token.value for token in self.tokenizer.model.tokenize(word)]
        while ranked := [(self.ranks[pair], pair) for pair in pairwise(pieces) if pair in self.ranks]:
            pieces = _join(pieces, min(ranked)[1])
        return pieces

    def word(self, text: str) -> str | None:
        """The form in which `text` stands within a text, a space at its beginning included; None where it is more
        than one of `words_of`."""
        before = words_of(self.tokenizer, "\n")
        words = words_of(self.tokenizer, "\n" + text)
        whole = len(words) == len(before) + 1 and words[: len(before)] == before
        return words[-1] if whole else None

    def add(self, word: str) -> bool:
        """Make one token of a word; where it has more than two pieces, so becomes what joins some of them. False, and
        nothing is added, where an old token stands in the way."""
        merges, tokens = len(self.ranks), len(self.new)
        while len(pieces := self.split(word)) > 1:
            pair = next(filter(self._joinable, pairwise(pieces)), None)
            if pair is None:
                for one in list(self.ranks)[merges:]:
                    del self.ranks[one]
                for token in list(self.new)[tokens:]:
                    self._next = min(self._next, self.new.pop(token))
                    del self.pieces[token]
                return False
            self._merge(pair)
        return True

    def learn(self, texts: Iterable[str], add: int) -> tuple[int, int]:
        """Add up to `add` tokens, each time of the two neighbours that stand together most often within words; equal
        counts in the order of the alphabet. Returns the tokens of all texts before and after."""
        counts = Counter(word for text in texts for word in words_of(self.tokenizer, text))
        words = [(self.split(word), count) for word, count in counts.items()]
        before = sum(len(pieces) * count for pieces, count in words)
        together: Counter[Pair] = Counter()
        places: defaultdict[Pair, set[int]] = defaultdict(set)
        for place, (pieces, count) in enumerate(words):
            for pair in pairwise(pieces):
                together[pair] += count
                places[pair].add(place)
        heap = [(-count, pair) for pair, count in together.items()]
        heapify(heap)
        first = len(self.new)
        while heap and len(self.new) - first < add:
            count, pair = heappop(heap)
            if -count != together[pair] or -count < 2 or not self._joinable(pair):
                continue  # its count has changed since, and stands in the heap again
            self._merge(pair)
            changed: set[Pair] = set()
            for place in places.pop(pair):
                pieces, times = words[place]
                joined = _join(pieces, pair)
                together.subtract({one: times * n for one, n in Counter(pairwise(pieces)).items()})
                for one in pairwise(joined):
                    together[one] += times
                    places[one].add(place)
                changed.update(pairwise(pieces), pairwise(joined))
                words[place] = joined, times
            for one in changed:
                heappush(heap, (-together[one], one))
        return before, sum(len(pieces) * count for pieces, count in words)

    def _joinable(self, pair: Pair) -> bool:
        """Whether the two become a token that was not there; bytes and the unknown token are spelled otherwise."""
        unknown = self.tokenizer.model.unk_token
        return "".join(pair) not in self.old and not any(one == unknown or _BYTE.fullmatch(one) for one in pair)

    def _merge(self, pair: Pair) -> None:
        token = "".join(pair)
        self.ranks[pair] = len(self.ranks)
        if token not in self.new:
            self.new[token] = self._next
            self.pieces[token] = tuple(id for part in pair for id in self.pieces.get(part) or (self.old[part],))
            self._next += 1

    def written(self) -> str:
        """The tokenizer with the new merges, as tokenizer.json has it."""
        held = json.loads(self.tokenizer.to_str())
        # Added tokens too: those outside the vocabulary would be numbered anew, behind it.
        held["model"]["vocab"] |= {one["content"]: one["id"] for one in held["added_tokens"]} | self.new
        held["model"]["merges"] += [list(pair) for pair in self.ranks]
        return json.dumps(held, ensure_ascii=False)


def _join(pieces: Sequence[str], pair: Pair) -> list[str]:
    joined: list[str] = []
    at = 0
    while at < len(pieces):
        both = tuple(pieces[at : at + 2]) == pair
        joined.append("".join(pair) if both else pieces[at])
        at += 2 if both else 1
    return joined
