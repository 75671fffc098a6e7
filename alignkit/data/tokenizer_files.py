"""Trains a tokenizer into a folder, with a chat template that holds. Knows no model and no terminal."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

from alignkit.chat import ChatFormat
from alignkit.config import InputError
from alignkit.data.text_stream import sample_texts
from alignkit.data.tokenizer import TokenizerKind, train_tokenizer

UNIGRAM_MEGABYTES = 100.0
"""The sample that a unigram tokenizer is trained on where no limit is given."""


@dataclass
class Trained:
    """What a tokenizer was trained on."""

    tokens: int = 0
    """Of the tokenizer, special ones included."""
    texts: int = 0
    bytes: int = 0
    """Of UTF-8."""

    def counted(self, texts: Iterable[str]) -> Iterator[str]:
        """The texts, counted as they pass."""
        for text in texts:
            self.texts += 1
            self.bytes += len(text.encode())
            yield text


def train_to_folder(
    texts: Iterable[str],
    out: Path,
    kind: str,
    vocabulary: int,
    special: Sequence[str] = (),
    chat_template: str | None = None,
    most: int | None = None,
    megabytes: float | None = None,
    seed: int = 0,
) -> Trained:
    """Train a tokenizer on texts, or on a seeded sample of them, and write a folder that AutoTokenizer reads.

    `chat_template` is "chatml", "none" or a .jinja file, and is checked as a model's would be. Raises InputError.
    """
    kinds = get_args(TokenizerKind)
    if kind not in kinds:
        raise InputError(f"--kind: {kind!r} is no kind of tokenizer; give one of {', '.join(kinds)}")
    if kind == "unigram" and most is None and megabytes is None:
        megabytes = UNIGRAM_MEGABYTES
    if chat_template is not None:  # a template that does not hold is told before the texts are read
        ChatFormat.load(train_tokenizer(["a"], "bpe", 300 + len(special), special), chat_template)
    with new_folder(out) as folder:
        done = Trained()
        tokenizer = train_tokenizer(
            done.counted(sample_texts(texts, most, megabytes, seed)), kind, vocabulary, special
        )
        if chat_template is not None:
            ChatFormat.load(tokenizer, chat_template)
        tokenizer.save_pretrained(folder)
        done.tokens = len(tokenizer)
    return done


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to write in that becomes `out` when the block ends well. Raises InputError where `out` stands."""
    if out.exists():
        raise InputError(f"{out}: exists already; name a new folder, or delete it")
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as unfinished:
        made = Path(unfinished) / "made"
        made.mkdir()
        yield made
        made.rename(out)
