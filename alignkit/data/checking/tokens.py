"""A sample of the records as a model's tokens: lengths, what a limit costs, what the token contract refuses.

It renders records as the stages do and knows no stage. Memory: the sampled records.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from alignkit.chat import ChatFormat
from alignkit.config import InputError
from alignkit.data.checking.finding import MOST_SAMPLES, Finding, Sample, fine, of
from alignkit.data.checking.items import Item
from alignkit.data.checking.labels import LengthBias
from alignkit.data.checking.lengths import Distribution, distribution
from alignkit.data.checking.mending import CONTROL, OVER_LONG, TEMPLATE, UNKNOWN, UNTRAINED
from alignkit.data.documents import document_sequences
from alignkit.models import load_tokenizer
from alignkit.options.shared import ModelOptions
from alignkit.prepare import load_format, sequences_of
from alignkit.records import Comparison, Document, Prompt, Record
from alignkit.trie import TokenSequence

Tokenize = Callable[[Record], list[TokenSequence]]
WHOLE = 2**62
"""Tokens: no document is longer, so none is cut."""


@dataclass(frozen=True)
class Measured:
    """One record in tokens."""

    item: Item
    sequences: list[TokenSequence]
    """One for each answer; weight above 0 on what is trained."""

    @property
    def longest(self) -> int:
        return max(len(one.ids) for one in self.sequences)


class TokenSample:
    """Up to `size` records, each as likely as any other (Vitter 1985, algorithm R, seeded), and their tokens."""

    def __init__(self, model: str, template: str | None, as_: type[Record], size: int, max_length: int | None) -> None:
        self._max_length, self._size = max_length, size
        self._items: list[Item] = []
        self._seen = 0
        self._random = Random(0)
        if as_ is Document:
            self._format, self._tokenizer = None, load_tokenizer(model)
        else:
            self._format = _format(model, template)
            self._tokenizer = self._format.tokenizer
        self.distributions: list[Distribution] = []

    def add(self, item: Item) -> None:
        self._seen += 1
        if len(self._items) < self._size:
            self._items.append(item)
        elif (place := self._random.randrange(self._seen)) < self._size:
            self._items[place] = item

    def findings(self) -> list[Finding]:
        measured, refused = self._measure()
        total = len(self._items)
        some = "records" if total == self._seen else f"records of a sample of {self._seen:,}"
        found = [_refused(refused, total, some)]
        if not measured:
            return found
        self._describe(measured)
        found += [_untrained(measured, some), *self._contract(measured)]
        if isinstance(measured[0].item.record, Comparison):
            bias = LengthBias("tokens")
            for one in measured:
                assert isinstance(one.item.record, Comparison)
                bias.take(one.item.record, [_trained(sequence) for sequence in one.sequences])
            found += bias.findings()
        if self._max_length is not None:
            found.append(_over_long(measured, self._max_length, some))
        return found

    def _measure(self) -> tuple[list[Measured], list[tuple[Item, str]]]:
        measured: list[Measured] = []
        refused: list[tuple[Item, str]] = []
        for item in sorted(self._items, key=lambda item: item.number):
            try:
                measured.append(Measured(item, self._tokens(item.record)))
            except InputError as error:
                refused.append((item, str(error)))
        return measured, refused

    def _tokens(self, record: Record) -> list[TokenSequence]:
        if isinstance(record, Document):
            return document_sequences([record], self._tokenizer, WHOLE)[0]
        assert self._format is not None
        if isinstance(record, Prompt):
            ids = self._format.prompt(record.messages, record.tools)
            return [TokenSequence(ids, [0.0] * len(ids))]
        return sequences_of(self._format, [record], "all")[0]

    def _describe(self, measured: list[Measured]) -> None:
        """Fill in the distributions."""
        sequences = [sequence for one in measured for sequence in one.sequences]
        trained = [_trained(sequence) for sequence in sequences]
        parts = {"whole": [one.longest for one in measured]}
        if not isinstance(measured[0].item.record, Document | Prompt):
            starts = [len(one.ids) - count for one, count in zip(sequences, trained, strict=True)]
            parts = {"prompt": starts, "answer": trained, **parts}
        described = (distribution(part, "tokens", lengths) for part, lengths in parts.items())
        self.distributions = [one for one in described if one is not None]

    def _contract(self, measured: list[Measured]) -> list[Finding]:
        """What the format and the tokenizer met besides."""
        found: list[Finding] = []
        counts = Counter[str]() if self._format is None else self._format.counts
        if counts["control_text"]:
            measured_as = f"{counts['control_text']:,} messages hold the text of special tokens, such as of a template"
            effect = "They are encoded as plain text, and a model learns to write marks that end nothing."
            found.append(
                Finding("control_text", "warning", measured_as, effect, CONTROL, {"count": counts["control_text"]})
            )
        unknown, ids = self._tokenizer.unk_token_id, [id for one in measured for s in one.sequences for id in s.ids]
        if unknown not in (
            None,
            self._tokenizer.bos_token_id,
            self._tokenizer.eos_token_id,
            self._tokenizer.pad_token_id,
        ):
            count = ids.count(unknown)
            numbers = {"count": count, "of": len(ids)}
            if count:
                effect = "Nothing is learnt of them, and a model writes them as an unknown mark."
                said = f"{of(count, len(ids), 'tokens')} are unknown to the tokenizer"
                found.append(Finding("unknown_tokens", "warning", said, effect, UNKNOWN, numbers))
            else:
                found.append(
                    fine("unknown_tokens", f"no token of {len(ids):,} is unknown to the tokenizer", **numbers)
                )
        return found


def _format(model: str, template: str | None) -> ChatFormat:
    try:
        return load_format(ModelOptions(path=model, chat_template=template))
    except InputError as error:
        if "has no chat template" in str(error):
            raise InputError(
                f"{model}: has no chat template; give --chat-template chatml, none, or a .jinja file"
            ) from error
        raise


def _trained(sequence: TokenSequence) -> int:
    return sum(weight > 0 for weight in sequence.weights)


def _refused(refused: list[tuple[Item, str]], total: int, some: str) -> Finding:
    numbers = {"count": len(refused), "of": total}
    if not refused:
        return fine("token_contract", f"all {total:,} {some} can be rendered", **numbers)
    reasons = Counter(reason.partition("; ")[0] for _, reason in refused)
    first = ", ".join(f"{count:,} × {reason}" for reason, count in reasons.most_common(2))
    samples = tuple(Sample(item.place, (reason,)) for item, reason in refused[:MOST_SAMPLES])
    measured = f"{of(len(refused), total, some)} break the token contract: {first}"
    effect = "A stage ends at the first of them: what a template leaves out is not trained, or is served otherwise."
    return Finding("token_contract", "problem", measured, effect, TEMPLATE, numbers, samples)


def _untrained(measured: list[Measured], some: str) -> Finding:
    bare = [one for one in measured if not isinstance(one.item.record, Document | Prompt)]
    bad = [one for one in bare if not all(_trained(sequence) for sequence in one.sequences)]
    numbers = {"count": len(bad), "of": len(bare)}
    if not bad:
        return fine("untrained", f"every answer of {len(bare):,} {some} has a token to train on", **numbers)
    samples = tuple(one.item.sample() for one in bad[:MOST_SAMPLES])
    measured_as = f"{of(len(bad), len(bare), some)} have an answer without a token to train on"
    effect = "The template prints these answers differently once a conversation goes on: they have weight 0."
    return Finding("untrained", "warning", measured_as, effect, UNTRAINED, numbers, samples)


def _over_long(measured: list[Measured], limit: int, some: str) -> Finding:
    over = [one for one in measured if one.longest > limit]
    sequences = [sequence for one in measured for sequence in one.sequences]
    answers = sum(map(_trained, sequences))
    lost = sum(weight > 0 for one in sequences for weight in one.weights[limit:])
    numbers = {"count": len(over), "of": len(measured), "answer_tokens_lost": lost, "answer_tokens": answers}
    if not over:
        return fine("over_long", f"none of {len(measured):,} {some} is longer than {limit:,} tokens", **numbers)
    longest = max(one.longest for one in over)
    document = isinstance(over[0].item.record, Document)
    if document:
        measured_as = f"{of(len(over), len(measured), some)} are longer than {limit:,} tokens, the longest {longest:,}"
        return Finding(
            "over_long", "note", measured_as, "Pretraining cuts them into pieces; nothing is lost.", "", numbers
        )
    measured_as = (
        f"{of(len(over), len(measured), some)} are longer than {limit:,} tokens, the longest {longest:,}; cutting the "
        f"answers would lose {of(lost, answers, 'answer tokens')}"
    )
    effect = (
        "By default a stage refuses them; skipped or cut, the model learns less of long answers, or how to break off."
    )
    samples = tuple(one.item.sample() for one in over[:MOST_SAMPLES])
    return Finding("over_long", "warning", measured_as, effect, OVER_LONG.format(longest=longest), numbers, samples)
