"""Adds tokens to a checkpoint: its tokenizer, its embeddings, its chat template. Knows no source and no stage."""

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import AddedToken, PreTrainedTokenizerBase

from alignkit.chat import ChatFormat, extend_embeddings
from alignkit.chat.files import RECORD, write_generation_config
from alignkit.chat.tokens import add_special_tokens
from alignkit.config import InputError
from alignkit.data.merges import Merges, takes_merges
from alignkit.data.tokenizer_files import new_folder
from alignkit.models import load_checkpoint, load_tokenizer


@dataclass
class Extension:
    """What was added to a checkpoint."""

    before: int
    """Tokens of its tokenizer before."""
    after: int = 0
    rows: int = 0
    """Of the embeddings, after."""
    merged: int = 0
    """New tokens that merges of old ones make."""
    learned: int = 0
    """Of those, learned from the texts."""
    literal: int = 0
    """New tokens that are found before all else, as they are spelled."""
    special: int = 0
    skipped: int = 0
    """Tokens of the other tokenizer that are here already, or that no merges make here."""
    tokens_of_texts: tuple[int, int] | None = None
    """Tokens of the texts learned from, before and after."""


def extend_checkpoint(
    path: str,
    out: Path,
    *,
    tokens: Sequence[str] = (),
    donor: str | None = None,
    learn: Iterable[str] | None = None,
    add: int = 0,
    special: Sequence[str] = (),
    chat_template: str | None = None,
    pad_to_multiple_of: int | None = None,
) -> Extension:
    """Write the checkpoint at `path` to the new folder `out` with more tokens: `tokens`, those of the tokenizer
    `donor`, up to `add` learned from the texts `learn`, and special ones; and with a chat template.

    In a BPE tokenizer new tokens are merges of old ones; in others, and where a token crosses words, it is found as it
    is spelled. Its rows are the mean of the rows of the old tokens that it stands for. Raises InputError.
    """
    tokenizer = load_tokenizer(path, "MODEL")
    old = tokenizer.get_vocab()
    merges = _merges_of(path, tokenizer, special, donor is not None or learn is not None)
    done = Extension(before=len(tokenizer))
    literal = _name_tokens(merges, old, tokens)
    if merges is not None and donor is not None:
        done.skipped = _take_tokens(merges, load_tokenizer(donor, "--from"))
    if merges is not None and learn is not None:
        named = len(merges.new)
        done.tokens_of_texts = merges.learn(learn, add)
        done.learned = len(merges.new) - named
    model = load_checkpoint(path, "MODEL")
    with new_folder(out) as folder:
        tokenizer.save_pretrained(folder)
        if merges is not None:
            (folder / "tokenizer.json").write_text(merges.written(), encoding="utf-8")
        if (Path(path) / RECORD).is_file():  # ChatFormat reads both beside the tokenizer
            shutil.copyfile(Path(path) / RECORD, folder / RECORD)
        write_generation_config(model.generation_config, folder)
        tokenizer = load_tokenizer(str(folder))
        pieces = {} if merges is None else {merges.new[token]: parts for token, parts in merges.pieces.items()}
        done.merged, done.literal = len(pieces), len(literal)
        pieces |= _add_literal(tokenizer, literal, pieces)
        new = [*pieces, *add_special_tokens(tokenizer, special)]
        format = None
        if chat_template or tokenizer.chat_template:
            format = ChatFormat.load(tokenizer, chat_template)
            new += format.new_ids
        done.special, done.after = len(new) - len(pieces), len(tokenizer)
        now = tokenizer.get_vocab()
        moved = next((token for token, id in old.items() if now.get(token) != id), None)
        if moved is not None:
            raise InputError(f"MODEL: {type(tokenizer).__name__} numbers {moved!r} anew; its vocabulary cannot grow")
        extend_embeddings(
            model, tokenizer, new, {id: parts for id, parts in pieces.items() if parts}, pad_to_multiple_of
        )
        done.rows = model.get_input_embeddings().weight.shape[0]
        model.save_pretrained(folder)
        (tokenizer.save_pretrained(folder) if format is None else format.save(folder, model))
    return done


def _merges_of(path: str, tokenizer: PreTrainedTokenizerBase, special: Sequence[str], needed: bool) -> Merges | None:
    """The merges of a BPE tokenizer; None for another. Raises InputError where it cannot take what is to be added."""
    if not tokenizer.is_fast:
        raise InputError(
            f"MODEL: the tokenizer of {path!r} is none of the `tokenizers` library: it cannot be extended"
        )
    for token in special:
        if token in tokenizer.get_vocab():
            raise InputError(f"--special: {token!r} is a token of {path!r} already; leave it out")
    if takes_merges(tokenizer.backend_tokenizer):
        return Merges(tokenizer.backend_tokenizer)
    if needed:
        raise InputError(
            f"MODEL: the tokenizer of {path!r} is no byte-pair encoding, to which alone --from and --learn can add; "
            "name the tokens with --tokens"
        )
    return None


def _name_tokens(merges: Merges | None, old: dict[str, int], tokens: Sequence[str]) -> list[str]:
    """Have merges made for the tokens, also as they stand after a space; the tokens that none can make."""
    literal: list[str] = []
    for token in dict.fromkeys(tokens):
        if not token.strip():
            raise InputError(f"--tokens: {token!r} is only space; leave it out")
        forms = [token] if token[0].isspace() else [token, f" {token}"]
        words = [word for form in forms if merges is not None and (word := merges.word(form)) is not None]
        if merges is None or len(words) < len(forms):
            present = token in old
            literal.append(token)
        else:
            present = all(len(merges.split(word)) == 1 for word in words) or not all(map(merges.add, words))
        if present:
            raise InputError(f"--tokens: {token!r} is a token of the model already; leave it out")
    return literal


def _take_tokens(merges: Merges, donor: PreTrainedTokenizerBase) -> int:
    """Have merges made for what another tokenizer's tokens spell; how many of its tokens add nothing."""
    anchor: list[int] = donor.encode("a", add_special_tokens=False)
    before = len(donor.decode(anchor))
    added = set(donor.added_tokens_decoder)
    skipped = 0
    for id in sorted(set(donor.get_vocab().values()) - added):
        text: str = donor.decode([*anchor, id], clean_up_tokenization_spaces=False)[before:]
        word = merges.word(text) if text and "\ufffd" not in text else None
        skipped += word is None or len(merges.split(word)) == 1 or not merges.add(word)
    return skipped


def _add_literal(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str], merged: dict[int, tuple[int, ...]]
) -> dict[int, tuple[int, ...]]:
    """Add tokens that are found as they are spelled, as whole words where they begin and end in letters; the old
    tokens that each stands for."""
    pieces: list[tuple[int, ...]] = []
    for token in tokens:
        ids: list[int] = tokenizer.encode(token, add_special_tokens=False)
        pieces.append(tuple(old for id in ids for old in merged.get(id, (id,)) if old != tokenizer.unk_token_id))
    tokenizer.add_tokens(
        [AddedToken(one, normalized=False, single_word=one[0].isalnum() and one[-1].isalnum()) for one in tokens]
    )
    ids = tokenizer.convert_tokens_to_ids(list(tokens))
    return dict(zip(ids, pieces, strict=True))
