"""What tokenizers make of the same texts: sizes, pieces of words, losses, speed. Knows no source and no terminal."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Regex, pre_tokenizers
from transformers import PreTrainedTokenizerBase

from alignkit.config import InputError

BATCH = 256
_WORDS = pre_tokenizers.Split(Regex(r"[\p{L}\p{M}\p{N}]+"), "removed", invert=True)
"""A word is an unbroken run of letters, their marks, and digits."""


@dataclass(frozen=True)
class TokenizerFigures:
    """What one tokenizer makes of a sample of texts, special tokens of its own left aside."""

    vocabulary: int
    """Tokens it has, special ones included."""
    tokens: int
    """In all texts."""
    bytes_per_token: float
    """UTF-8 bytes of the texts per token."""
    tokens_per_word: float | None
    """Fertility: tokens that hold a part of a word, per word, each in its place in the text; None without a word."""
    whole_words: float | None
    """Share of the words that lie in one token, which is not the unknown one."""
    unknown: float
    """Share of the tokens that are the unknown token."""
    lossless: float
    """Share of the texts that decode to what they were, to the letter."""
    tokens_per_second: float
    """Of encoding alone, with as many threads as `tokenizers` takes."""


def measure(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> TokenizerFigures:
    """The figures of one tokenizer on texts that hold at least one byte.

    Raises InputError where the tokenizer gives no places of its tokens, meets what it has no token for, or makes none.
    """
    name = tokenizer.name_or_path or "the tokenizer"
    if not tokenizer.is_fast:
        raise InputError(
            f"{name}: is no tokenizer of the `tokenizers` library, so the places of its tokens are unknown"
        )
    tokens = words = pieces = whole = unknown = kept = 0
    seconds = 0.0
    for start in range(0, len(texts), BATCH):
        batch = list(texts[start : start + BATCH])
        begun = time.perf_counter()
        try:
            encoded = tokenizer.backend_tokenizer.encode_batch(batch, add_special_tokens=False)
        except Exception as error:  # the library raises no narrower one
            raise InputError(
                f"{name}: cannot encode these texts: {error}. Give it an unknown token, or train one that takes any "
                "text (bpe, unigram)"
            ) from error
        seconds += time.perf_counter() - begun
        for text, one in zip(batch, encoded, strict=True):
            ids = one.ids  # each look makes a new list
            tokens += len(ids)
            unknown += 0 if tokenizer.unk_token_id is None else ids.count(tokenizer.unk_token_id)
            decoded = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            kept += decoded == text
            for held in tokens_of_words(text, one.offsets):
                words, pieces = words + 1, pieces + len(held)
                whole += len(held) == 1 and ids[held.start] != tokenizer.unk_token_id
    if not tokens:
        raise InputError(f"{name}: makes no token of these {len(texts):,} texts; take more of them (--megabytes)")
    return TokenizerFigures(
        vocabulary=len(tokenizer),
        tokens=tokens,
        bytes_per_token=sum(len(text.encode()) for text in texts) / tokens,
        tokens_per_word=pieces / words if words else None,
        whole_words=whole / words if words else None,
        unknown=unknown / tokens,
        lossless=kept / len(texts),
        tokens_per_second=tokens / seconds,
    )


def tokens_of_words(text: str, offsets: Sequence[tuple[int, int]]) -> list[range]:
    """Of each word of a text, which tokens hold a part of it; `offsets` are the tokens' (begin, end) in characters,
    in order."""
    found: list[range] = []
    first = 0
    for _, (begin, end) in _WORDS.pre_tokenize_str(text):
        while first < len(offsets) and offsets[first][1] <= begin:
            first += 1
        past = first
        while past < len(offsets) and offsets[past][0] < end:
            past += 1
        found.append(range(first, past))
    return found
