"""Trains tokenizers on a stream of texts: BPE, unigram, words or characters; knows nothing of models or stages.

The result is a plain transformers tokenizer: it begins every text with BOS, has EOS and PAD of its own and the two
marks of ChatML, and `save_pretrained` writes what `AutoTokenizer.from_pretrained` reads. Texts are read once and not
kept: memory grows with their different words.
"""

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


def train_tokenizer(
    texts: Iterable[str], kind: TokenizerKind, vocabulary: int, extra_special: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """Train a tokenizer of at most `vocabulary` tokens, special ones included.

    `bpe`: byte-level byte-pair encoding; every text encodes and decodes without loss. `unigram`: a language model of
    pieces of bytes (Kudo 2018, arXiv:1804.10959), likewise without loss; it may end with fewer tokens, and two
    trainings differ in the last digits of its scores, as `tokenizers` sums in no fixed order. `word`: one token per word,
    number or mark, the most frequent first, others become the unknown token; spaces are set anew (one between
    words, none before a mark). `character`: one token per character, likewise and without loss. Raises InputError
    where the vocabulary cannot hold what it must.
    """
    special = [BOS, EOS, PAD, *CHAT, *extra_special]
    twice = [token for token, times in Counter([*special, UNKNOWN]).items() if times > 1]
    if twice:
        raise InputError(f"special tokens: every tokenizer has {', '.join(twice)} once; do not name it again")
    lossless = kind in ("bpe", "unigram")
    if lossless:
        tokenizer = _train_on_bytes(texts, vocabulary, special, kind)
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


def _train_on_bytes(texts: Iterable[str], vocabulary: int, special: list[str], kind: TokenizerKind) -> Tokenizer:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    _check_size(vocabulary, len(alphabet) + len(special), "the 256 bytes and the special tokens")
    tokenizer = Tokenizer(models.BPE() if kind == "bpe" else models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = (trainers.BpeTrainer if kind == "bpe" else trainers.UnigramTrainer)(
        vocab_size=vocabulary, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    if kind == "unigram" and '",null]' in tokenizer.to_str():
        raise InputError("tokenizer.kind: unigram has no pieces to choose from in so little text; give more, or bpe")
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
        raise InputError(f"tokenizer.vocabulary: {vocabulary} cannot hold {what}; give at least {least}")
