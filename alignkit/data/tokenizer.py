"""Trains tokenizers on a stream of texts: BPE, unigram, words or characters; knows nothing of models or stages.

The result is a plain transformers tokenizer: it begins every text with BOS, has EOS and PAD of its own and the two
marks of ChatML, and `save_pretrained` writes what `AutoTokenizer.from_pretrained` reads. Texts are read once and not
kept: memory grows with their different words.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from alignkit.config import InputError

TokenizerKind = Literal["bpe", "unigram", "word", "character"]
BOS, EOS, PAD, UNKNOWN = "<|bos|>", "<|eos|>", "<|pad|>", "<|unk|>"
CHAT = ("<|im_start|>", "<|im_end|>")
FILL = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
# What chat templates print between the marks: always in a vocabulary of words or characters.
_SCAFFOLD = "system\nuser\nassistant\ntool\n"
_ALPHABET = pre_tokenizers.ByteLevel.alphabet()
_END = "\n"
"""No letter of that alphabet."""
_AT_ONCE = 4096


def train_tokenizer(
    texts: Iterable[str], kind: TokenizerKind, vocabulary: int, extra_special: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """Train a tokenizer of at most `vocabulary` tokens, special ones included.

    `bpe`: byte-level byte-pair encoding; every text encodes and decodes without loss. `unigram`: a language model of
    pieces of bytes (Kudo 2018, arXiv:1804.10959), likewise without loss; two trainings differ in scores and order of
    ids, and so in a few encodings, as `tokenizers` sums in no fixed order. `word`: one token per word, number or
    mark, the most frequent first, others become the unknown token; spaces are set anew (one between words, none
    before a mark). `character`: one token per character, likewise and without loss. Raises InputError where the
    vocabulary cannot hold what it must.
    """
    special = [BOS, EOS, PAD, *CHAT, *extra_special]
    twice = [token for token, times in Counter([*special, UNKNOWN]).items() if times > 1]
    if twice:
        raise InputError(f"special tokens: every tokenizer has {', '.join(twice)} once; do not name it again")
    lossless = kind in ("bpe", "unigram")
    if lossless:
        _check_size(vocabulary, len(_ALPHABET) + len(special), "the 256 bytes and the special tokens")
        tokenizer = (_train_bpe if kind == "bpe" else _train_unigram)(texts, vocabulary, special)
    else:
        tokenizer = _count(texts, vocabulary, [*special, UNKNOWN], kind)
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=None if lossless else UNKNOWN,
        additional_special_tokens=[*CHAT, *extra_special],
        clean_up_tokenization_spaces=False,
    )


def _train_bpe(texts: Iterable[str], vocabulary: int, special: list[str]) -> Tokenizer:
    tokenizer = _of_bytes(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=special, initial_alphabet=_ALPHABET, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _train_unigram(texts: Iterable[str], vocabulary: int, special: list[str]) -> Tokenizer:
    """`tokenizers` takes its first pieces from what stands twice in the list of different words, however often each
    is said, so hardly a whole word is among them. Here the most frequent stand there once more, with an end mark that
    is then removed.
    """
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    counts = Counter(word for text in texts for word, _ in split.pre_tokenize_str(text))

    def words() -> Iterator[list[str]]:
        for word, count in counts.items():
            for start in range(0, count, _AT_ONCE):
                yield [word] * min(_AT_ONCE, count - start)
        yield [word + _END for word, _ in counts.most_common(vocabulary)]

    trained = Tokenizer(models.Unigram())
    trainer = trainers.UnigramTrainer(
        vocab_size=vocabulary + 1, special_tokens=special, initial_alphabet=_ALPHABET, show_progress=False
    )
    trained.train_from_iterator(words(), trainer)
    scored: list[tuple[str, float | None]] = json.loads(trained.to_str())["model"]["vocab"]
    pieces = [(piece, score) for piece, score in scored if _END not in piece and score is not None]
    if len(pieces) < len(special) + len(_ALPHABET):
        raise InputError("kind: unigram finds no pieces in so little text; give more, or choose bpe")
    for piece in [piece for piece in reversed(pieces) if piece[0] not in {*special, *_ALPHABET}]:
        if len(pieces) <= vocabulary:
            break
        pieces.remove(piece)
    return _of_bytes(models.Unigram(pieces))


def _of_bytes(model: models.Model) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _count(texts: Iterable[str], vocabulary: int, special: list[str], kind: TokenizerKind) -> Tokenizer:
    """The most frequent words or characters; equal counts in the order of first sight, so that runs repeat."""
    tokenizer = Tokenizer(models.WordLevel({UNKNOWN: 0}, unk_token=UNKNOWN))
    if kind == "word":
        # Spaces are dropped, so a word is one token wherever it stands; the decoder sets them anew.
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(r"[^\S\n]+"), "removed"),
                pre_tokenizers.Split(Regex(r"[^\p{L}\p{M}\p{N}]"), "isolated"),
            ]
        )
        tokenizer.decoder = decoders.Sequence(
            [
                decoders.WordPiece(prefix="##", cleanup=False),
                decoders.Fuse(),
                decoders.Replace(Regex(r" (?=[.,;:!?\n])|(?<=\n) "), ""),
            ]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        tokenizer.decoder = decoders.Fuse()
    split = tokenizer.pre_tokenizer

    def pieces(text: str) -> Iterator[str]:
        return (piece for piece, _ in split.pre_tokenize_str(text))

    scaffold = list(dict.fromkeys(pieces(_SCAFFOLD)))
    counts = Counter(piece for text in texts for piece in pieces(text))
    least = len(special) + len(scaffold) + 1
    _check_size(vocabulary, least, "the special tokens and the names of the chat roles")
    frequent = [piece for piece, _ in counts.most_common() if piece not in scaffold]
    tokens = [*special, *scaffold, *frequent][:vocabulary]
    tokenizer.model = models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token=UNKNOWN)
    return tokenizer


def _check_size(vocabulary: int, least: int, what: str) -> None:
    if vocabulary < least:
        raise InputError(f"vocabulary: {vocabulary} cannot hold {what}; give at least {least}")
