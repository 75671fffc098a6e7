"""Documents to token sequences: beginning and end marks, pieces within a length, fill-in-the-middle. No model."""

from collections.abc import Sequence
from random import Random

from transformers import PreTrainedTokenizerBase

from alignkit.data.tokenizer import FILL
from alignkit.records import Document
from alignkit.trie import TokenSequence


def document_sequences(
    documents: Sequence[Document],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    fim_rate: float = 0.0,
    seed: int = 0,
    first: int = 0,
) -> list[list[TokenSequence]]:
    """One list of pieces per document: the tokenizer's own beginning, the text, EOS; every token but the first
    weighs 1.

    A piece after the first begins with the last token of the one before, which it only conditions on, so each token is
    predicted exactly once. The column `bytes` holds each piece's share of the document's UTF-8 bytes, by predicted
    tokens. With `fim_rate`, that share of the documents is rearranged: prefix, suffix, then the middle to be filled
    in; which ones, `seed` draws by their numbers, from `first` on.
    """
    plain = [document.text for document in documents]
    encoded: list[list[int]] = tokenizer(plain)["input_ids"] if plain else []
    sequences: list[list[TokenSequence]] = []
    for index, (text, ids) in enumerate(zip(plain, encoded, strict=True)):
        if fim_rate and (rng := Random(f"{seed}/{first + index}")).random() < fim_rate:
            ids = _fill_in_the_middle(text, tokenizer, rng)
        if tokenizer.eos_token_id is not None and ids[-1:] != [tokenizer.eos_token_id]:
            ids = [*ids, tokenizer.eos_token_id]
        sequences.append(_pieces(ids, max_length, len(text.encode())))
    return sequences


def _fill_in_the_middle(text: str, tokenizer: PreTrainedTokenizerBase, rng: Random) -> list[int]:
    """Prefix-suffix-middle order, cut at two characters (Bavarian et al. 2022, https://arxiv.org/abs/2207.14255)."""
    low, high = sorted(int(rng.random() * (len(text) + 1)) for _ in range(2))
    marks: list[int] = tokenizer.convert_tokens_to_ids(list(FILL))
    # The beginning that the tokenizer itself puts before a text: a BOS or nothing, never its end.
    ids: list[int] = [token for token in tokenizer("")["input_ids"] if token == tokenizer.bos_token_id][:1]
    for mark, part in zip(marks, (text[:low], text[high:], text[low:high]), strict=True):
        ids = [*ids, mark, *tokenizer(part, add_special_tokens=False)["input_ids"]]
    return ids


def _pieces(ids: Sequence[int], max_length: int, size: int) -> list[TokenSequence]:
    pieces: list[TokenSequence] = []
    for start in range(0, max(1, len(ids) - 1), max_length - 1):
        piece = ids[start : start + max_length]
        weights = [0.0] + [1.0] * (len(piece) - 1)
        share = size * (len(piece) - 1) / max(1, len(ids) - 1)
        pieces.append(TokenSequence(piece, weights, columns={"bytes": share}))
    return pieces
