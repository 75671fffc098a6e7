"""Trains tokenizers on a user's own text: byte-level BPE, words or characters; knows nothing of models or stages.

The result is a plain transformers tokenizer: it begins every text with BOS, has EOS and PAD of its own and the two
marks of ChatML, and `save_pretrained` writes what `AutoTokenizer.from_pretrained` reads.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from alignkit.config import InputError

TokenizerKind = Literal["bpe", "word", "character"]
BOS, EOS, PAD, UNKNOWN = "<|bos|>", "<|eos|>", "<|pad|>", "<|unk|>"
CHAT = ("<|im_start|>", "<|im_end|>")
FILL = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
# What chat templates print between the marks: always in a vocabulary of words or characters.
_SCAFFOLD = "system\nuser\nassistant\ntool\n"


def train_tokenizer(
    texts: Iterable[str], kind: TokenizerKind, vocabulary: int, extra_special: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """Train a tokenizer of at most `vocabulary` tokens, special ones included.

    `bpe`: byte-level byte-pair encoding; every text encodes and decodes without loss. `word`: one token per word,
    number or mark, the most frequent first, others become the unknown token; spaces are set anew (one between
    words, none before a mark). `character`: one token per character, likewise and without loss. Raises InputError
    where the vocabulary cannot hold what it must.
    """
    special = [BOS, EOS, PAD, *CHAT, *extra_special]
    if kind == "bpe":
        tokenizer = _train_bpe(texts, vocabulary, special)
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
        unk_token=None if kind == "bpe" else UNKNOWN,
        additional_special_tokens=[*CHAT, *extra_special],
        clean_up_tokenization_spaces=False,
    )


def _train_bpe(texts: Iterable[str], vocabulary: int, special: list[str]) -> Tokenizer:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    _check_size(vocabulary, len(alphabet) + len(special), "the 256 bytes and the special tokens")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
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
