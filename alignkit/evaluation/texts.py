"""Held-out texts as sequences of one model, cut to what it can read. It knows neither numbers nor files."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from transformers import PretrainedConfig

from alignkit.chat import ChatFormat
from alignkit.config import InputError
from alignkit.data.placed import placed
from alignkit.options.evaluate import EvaluateConfig
from alignkit.options.shared import DataOptions
from alignkit.prepare import fit_examples
from alignkit.records import Demonstration, Document
from alignkit.trie import TokenSequence

KINDS: dict[str, type[Demonstration] | type[Document]] = {"demonstrations": Demonstration, "documents": Document}
"""What `texts_are` may say, and the records it means."""


def text_sequences(
    format: ChatFormat,
    texts: Sequence[Demonstration | Document],
    config: EvaluateConfig,
    positions: int | None,
    budget: int,
) -> tuple[list[TokenSequence], list[str]]:
    """The texts as sequences whose predicted tokens weigh 1, and what these tokens spell.

    None is longer than texts.max_length and the `positions` that the model knows: documents are cut there, and longer
    demonstrations are dealt with as texts.over_long says. Raises InputError; also where one exceeds the token budget.
    """
    assert config.texts is not None
    limit = min(config.texts.max_length, positions or config.texts.max_length)
    options = config.texts.model_copy(update={"max_length": limit})
    shown = [text for text in texts if isinstance(text, Demonstration)]
    written = [text for text in texts if isinstance(text, Document)]
    try:
        found = placed(config.texts, shown, lambda some: _answers(format, some, options, budget))
        found += placed(config.texts, written, lambda some: _beginnings(format, some, options, budget))
    except InputError as error:
        raise InputError(f"texts: {error}") from error
    if not found:
        raise InputError("texts: none is left; look at texts.max_length, texts.over_long and the answers' weights")
    return [sequence for sequence, _ in found], [text for _, text in found]


def positions_of(config: PretrainedConfig) -> int | None:
    """How many positions a model knows; None where its configuration names no number."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def _answers(
    format: ChatFormat, conversations: Sequence[Demonstration], options: DataOptions, budget: int
) -> list[tuple[TokenSequence, str]]:
    """The last answer of each conversation, unless its weight is 0, and all it spells: reasoning and calls too."""
    answered = [(one.messages, one.tools) for one in conversations if one.messages[-1].weight]
    turns = format.turns_of(answered, "last")
    pairs: list[tuple[TokenSequence, str]] = []
    for fitted in fit_examples(turns, options, budget, format.tokenizer.bos_token_id, Counter()):
        if fitted is not None:
            sequence = replace(fitted[0], weights=[float(weight > 0) for weight in fitted[0].weights])
            answer = [token for token, weight in zip(sequence.ids, sequence.weights, strict=True) if weight]
            spelled = format.encoder.decode(answer, format.shape.prompt)
            pairs.append((sequence, format.encoder.specials.sub("", spelled)))
    return pairs


def _beginnings(
    format: ChatFormat, documents: Sequence[Document], options: DataOptions, budget: int
) -> list[tuple[TokenSequence, str]]:
    """Each document as far as it fits, after BOS where there is one."""
    tokenizer = format.tokenizer
    before = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    room = options.max_length - len(before)
    texts = [document.text for document in documents]
    encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []
    pairs: list[tuple[TokenSequence, str]] = []
    for text, ids in zip(texts, encoded, strict=True):
        kept = [*before, *ids[:room]]
        if len(kept) > 1:
            sequence = TokenSequence(kept, [0.0] + [1.0] * (len(kept) - 1))
            # The bytes are those of what is predicted: not of a first token that nothing stands before.
            whole = before and len(ids) <= room
            pairs.append((sequence, text if whole else tokenizer.decode(kept[1:])))
    fit_examples([[sequence] for sequence, _ in pairs], options, budget, None, Counter())  # raises above the budget
    return pairs
