"""The tokenizer side of the chat format: text to ids and back, new special tokens. It does not know templates."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from transformers import AddedToken, PreTrainedModel, PreTrainedTokenizerBase

from alignkit.config import InputError

_BEGIN, _END = "\U000f00a0", "\U000f00a1"  # private use: around a special token that someone wrote into a message


@dataclass(frozen=True)
class Encoder:
    """A tokenizer that keeps texts apart: special tokens come from the template alone, and a text that follows
    another gets no leading space of its own. The tokenizer must have all its special tokens when this is made."""

    tokenizer: PreTrainedTokenizerBase

    @cached_property
    def _names(self) -> tuple[str, ...]:
        added = [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        names = {*added, *self.tokenizer.all_special_tokens} - {""}
        return tuple(sorted(names, key=lambda name: (-len(name), name)))

    @cached_property
    def specials(self) -> re.Pattern[str]:
        """Matches any special token; of two that start alike, the longer."""
        return re.compile("|".join(map(re.escape, self._names)) or "(?!)")

    @cached_property
    def _written(self) -> re.Pattern[str]:
        return re.compile(f"{_BEGIN}({self.specials.pattern}){_END}")

    @cached_property
    def _openings(self) -> set[str]:
        # Searching for these first costs a hundredth of the pattern's search on text without special tokens.
        return {name[:2] for name in self._names}

    @cached_property
    def _newline(self) -> list[int]:
        """Ids of a line break where the tokenizer puts a space before every text it is given; else empty."""
        newline, letter, both = self._batch(["\n", "a", "\na"])
        return newline if both != newline + letter and both[: len(newline)] == newline else []

    def mark(self, value: Any) -> Any:
        """The same text, or nested lists and dicts of texts, in which special tokens that someone wrote are set apart
        from the template's own. Keys are left alone."""
        if isinstance(value, str):
            if not any(opening in value for opening in self._openings):
                return value
            return self.specials.sub(f"{_BEGIN}\\g<0>{_END}", value.replace(_BEGIN, "").replace(_END, ""))
        if isinstance(value, dict):
            return {key: self.mark(inner) for key, inner in value.items()}
        return [self.mark(inner) for inner in value] if isinstance(value, list | tuple) else value

    def _batch(self, texts: Sequence[str], as_text: bool = False) -> list[list[int]]:
        if not texts:
            return []
        fast = self.tokenizer.backend_tokenizer if self.tokenizer.is_fast else None
        if fast is not None and fast.truncation is None and fast.padding is None:  # no offsets: half the time
            fast.encode_special_tokens = as_text  # the setting outlives a call, ours or another's
            ids = [encoded.ids for encoded in fast.encode_batch_fast(list(texts), add_special_tokens=False)]
            fast.encode_special_tokens = False
            return ids
        options = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
        return self.tokenizer(list(texts), split_special_tokens=as_text, truncation=False, **options)["input_ids"]

    def _anchor(self, after: str) -> str:
        """What to tokenize before a text that follows `after`, so that the text is not taken for a beginning."""
        if not after or not self._newline:
            return ""
        return next((name for name in self._names if after.endswith(name)), "\n") if after != "\n" else "\n"

    def encode(self, texts: Sequence[str], after: Sequence[str] | None = None) -> list[list[int]]:
        """Ids of each text; with `after`, of each text as it stands after another. No special token is added, and
        those that `mark` set apart become ordinary text."""
        jobs: list[list[tuple[str, str, bool]]] = []
        for text, before in zip(texts, after or [""] * len(texts), strict=True):
            if _BEGIN not in text:
                jobs.append([(self._anchor(before), text, False)])
                continue
            pieces = [(piece, number % 2 == 1) for number, piece in enumerate(self._written.split(text))]
            anchors = [self._anchor(before), *("\n" if self._newline else "" for _ in pieces)]
            jobs.append([(a, piece, odd) for a, (piece, odd) in zip(anchors, pieces, strict=False) if piece])
        ids = self._encode_jobs({job for text in jobs for job in text})
        return [ids[job[0]] if len(job) == 1 else [one for piece in job for one in ids[piece]] for job in jobs]

    def _encode_jobs(self, jobs: Iterable[tuple[str, str, bool]]) -> dict[tuple[str, str, bool], list[int]]:
        """Ids of (anchor, text, whether special tokens in it are ordinary text)."""
        done: dict[tuple[str, str, bool], list[int]] = {}
        anchors: dict[str, list[int]] = {"": []}
        for as_text in (False, True):
            some = [job for job in jobs if job[2] == as_text]
            encoded = self._batch([anchor + text for anchor, text, _ in some], as_text)
            for job, ids in zip(some, encoded, strict=True):
                if job[0] not in anchors:
                    anchors[job[0]] = self._batch([job[0]])[0]
                start = anchors[job[0]]
                done[job] = ids[len(start) :] if ids[: len(start)] == start else self._batch([job[1]], as_text)[0]
        return done

    def decode(self, ids: Sequence[int], after: str) -> str:
        """Text of ids that were generated after the text `after`, special tokens included."""
        newline = self._newline if self._anchor(after) == "\n" else []
        text = self.tokenizer.decode([*newline, *ids], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text.removeprefix("\n") if newline else text

    def merged(self, texts: Sequence[tuple[str, str]], reach: int = 16) -> int:
        """How many of the (before, text) would have a token across their border if both were tokenized as one text,
        judged from `reach` characters on either side."""
        windows = Counter((before[-reach:], text[:reach]) for before, text in texts)
        whole = self.encode([before + text for before, text in windows])
        left = self.encode([before for before, _ in windows])
        right = self.encode([text for _, text in windows], [before for before, _ in windows])
        return sum(n for n, a, b, c in zip(windows.values(), whole, left, right, strict=True) if a != b + c)


def token_id(tokenizer: PreTrainedTokenizerBase, token: str, field: str) -> int:
    """The id of a token that must exist. Raises InputError naming the option `field`."""
    known = tokenizer.convert_tokens_to_ids(token)
    if known is None or (known == tokenizer.unk_token_id and token != tokenizer.unk_token):
        raise InputError(f"{field}: {token!r} is not a token of the tokenizer {tokenizer.name_or_path or '(unnamed)'}")
    return int(known)


def add_special_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> tuple[int, ...]:
    """Make each of `tokens` one special token of the tokenizer; the ids of those that it did not have before."""
    known = tokenizer.get_vocab()
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in tokens], special_tokens=True)
    return tuple(token_id(tokenizer, token, "model.chat_template") for token in tokens if token not in known)


@torch.no_grad()
def extend_embeddings(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    new: Sequence[int],
    pieces: Mapping[int, Sequence[int]] | None = None,
    pad_to_multiple_of: int | None = None,
) -> None:
    """Give the token ids `new` rows in the input and output embeddings. A token that stands for several old ones, its
    `pieces`, gets the mean of their rows (Gee et al. 2022, arXiv:2402.09977); any other the mean of all old rows
    (Hewitt 2021), plus seeded noise of 1/100 of their deviation, without which a frozen head could never tell two
    new tokens apart.

    The model grows where it has fewer rows than the tokenizer has tokens, to a multiple if asked. Call it before
    adapters are injected; under LoRA these rows stay frozen unless the adapter trains them (peft's
    `trainable_token_indices`).
    """
    if not new and not pad_to_multiple_of:
        return
    before = model.get_input_embeddings().weight.shape[0]
    tokens = max([len(tokenizer), *(id + 1 for id in new)])
    if before < tokens or (pad_to_multiple_of and before % pad_to_multiple_of):
        model.resize_token_embeddings(max(before, tokens), pad_to_multiple_of, mean_resizing=False)
    rows = model.get_input_embeddings().weight.shape[0]
    fresh = [*new, *range(max(before, tokens), rows)]
    if not fresh:
        return
    old = torch.zeros(rows, dtype=torch.bool)
    old[: len(tokenizer)] = True
    old[fresh] = False
    head = model.get_output_embeddings()
    tables = {
        layer.weight.data_ptr(): layer.weight for layer in (model.get_input_embeddings(), head) if layer is not None
    }
    for table in tables.values():
        kept = table[old.to(table.device)]
        deviation = kept[:: 1 + len(kept) // 4096].float().std(0)
        noise = torch.randn(len(fresh), kept.shape[1], generator=torch.Generator().manual_seed(0)).to(kept.device)
        table[fresh] = (kept.mean(0, dtype=torch.float32) + 0.01 * deviation * noise).to(table.dtype)
        for id, parts in (pieces or {}).items():
            table[id] = table[list(parts)].mean(0, dtype=torch.float32).to(table.dtype)
    bias = getattr(head, "bias", None)
    if bias is not None:
        bias[fresh] = bias[old.to(bias.device)].mean()
        for id, parts in (pieces or {}).items():
            bias[id] = bias[list(parts)].mean()
