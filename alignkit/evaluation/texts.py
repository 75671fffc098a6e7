"""Held-out texts as sequences of one model, cut to what it can read. It knows neither numbers nor files."""

from collections.abc import Sequence

from alignkit.chat import fit_length
from alignkit.evaluation.answers import Speaker
from alignkit.options.shared import DataOptions
from alignkit.packing import TokenSequence
from alignkit.records import Demonstration, Document


def demonstrated(
    speaker: Speaker, conversations: Sequence[Demonstration], options: DataOptions, budget: int
) -> tuple[list[TokenSequence], list[str]]:
    """Each demonstration's last answer as a sequence, and its text; over-long ones as data.over_long says."""
    turns = speaker.format.turns_of([(one.messages, one.tools) for one in conversations], "last")
    limit, bos = _limit(speaker, options, budget), speaker.format.tokenizer.bos_token_id
    pairs: list[tuple[TokenSequence, str]] = []
    for one, sequences in zip(conversations, turns, strict=True):
        fitted = fit_length(sequences, limit, options.over_long, bos_id=bos)
        if fitted is not None:
            answer = [token for token, weight in zip(fitted[0].ids, fitted[0].weights, strict=True) if weight]
            whole = sum(fitted[0].weights) == sum(sequences[0].weights)
            pairs.append((fitted[0], one.messages[-1].content if whole else speaker.format.decode(answer).content))
    return [sequence for sequence, _ in pairs], [text for _, text in pairs]


def written(
    speaker: Speaker, documents: Sequence[Document], options: DataOptions, budget: int
) -> tuple[list[TokenSequence], list[str]]:
    """Each document's beginning, as long as fits, as a sequence (BOS first where there is one), and its text."""
    tokenizer = speaker.format.tokenizer
    before = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    room = _limit(speaker, options, budget) - len(before)
    found: list[tuple[TokenSequence, str]] = []
    for document, ids in zip(documents, _ids(speaker, [one.text for one in documents]), strict=True):
        kept = [*before, *ids[:room]]
        if len(kept) > 1:
            text = document.text if len(ids) <= room else tokenizer.decode(ids[:room])
            found.append((TokenSequence(kept, [0.0] + [1.0] * (len(kept) - 1)), text))
    return [sequence for sequence, _ in found], [text for _, text in found]


def _ids(speaker: Speaker, texts: Sequence[str]) -> list[list[int]]:
    return speaker.format.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]


def _limit(speaker: Speaker, options: DataOptions, budget: int) -> int:
    """Tokens of one text: no more than data.max_length, the token budget, and the positions the model knows."""
    positions = getattr(speaker.policy.model.config.get_text_config(), "max_position_embeddings", None)
    return min(options.max_length, budget, positions or options.max_length)
