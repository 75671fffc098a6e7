"""What stages on records do first and last: format, accelerator, records to examples, the end. Knows no loss."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from accelerate import Accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignkit.chat import ChatFormat, fit_length
from alignkit.config import InputError
from alignkit.examples import read_examples
from alignkit.examples_stored import discard_examples
from alignkit.loop import Example, FitResult, make_accelerator
from alignkit.models import known_positions, load_policy, load_tokenizer
from alignkit.options.shared import DataOptions, ModelOptions, RuntimeOptions
from alignkit.policy import Policy
from alignkit.records import Comparison, Demonstration, Feedback, Record
from alignkit.runs import Run
from alignkit.scorer import Scorer, load_scorer
from alignkit.trie import TokenSequence

logger = logging.getLogger(__name__)
R = TypeVar("R", bound=Record)


@dataclass(frozen=True, slots=True)
class Setting:
    """How a stage's model is spoken to, and where it runs."""

    path: str
    """The model that the format is of: it alone lacks the tokens that the format brought."""
    format: ChatFormat
    accelerator: Accelerator
    activation_checkpointing: bool

    @property
    def precision(self) -> Literal["float32", "bf16"]:
        """Of the frozen weights."""
        return "bf16" if self.accelerator.mixed_precision == "bf16" else "float32"

    def policy(self, options: ModelOptions, seed: int) -> Policy:
        """The policy that a stage trains."""
        policy = load_policy(options, seed=seed, **self._held(options))
        self._save_memory(policy.model)
        return policy

    def scorer(self, options: ModelOptions, seed: int, *, zero_head: bool = False) -> Scorer:
        """The scorer that a stage trains."""
        scorer = load_scorer(options, seed=seed, zero_head=zero_head, **self._held(options))
        self._save_memory(scorer.model)
        return scorer

    def _held(self, options: ModelOptions) -> dict[str, Any]:
        format = self.format if options.path == self.path else None
        return {"device": self.accelerator.device, "precision": self.precision, "format": format}

    def _save_memory(self, model: PreTrainedModel) -> None:
        if self.activation_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})


def open_setting(options: ModelOptions, runtime: RuntimeOptions) -> Setting:
    """The accelerator, and the format of the model that `options` names. Raises InputError."""
    return Setting(options.path, load_format(options), make_accelerator(runtime), runtime.activation_checkpointing)


def load_format(options: ModelOptions) -> ChatFormat:
    """How the model that `options` names is spoken to. Raises InputError."""
    return ChatFormat.load(
        load_tokenizer(options.path),
        options.chat_template,
        options.eos_token,
        options.template_kwargs,
        on_unrendered=options.on_unrendered,
    )


def load_examples(
    options: DataOptions,
    kind: type[R],
    tokenize: Callable[[Sequence[R]], Sequence[Sequence[TokenSequence]]],
    setting: Setting,
    run: Run,
    seed: int,
    budget: int,
) -> tuple[Sequence[Example], Sequence[Example], Sequence[R]]:
    """Training and validation examples within data.max_length, and the validation records that were kept.

    What was skipped or cut is logged as data/skipped and data/truncated (rankings whole, turns of a conversation one
    by one), unknown tokens as data/unknown_tokens, what the token contract met as data/unrendered,
    data/unextended_turns, data/thinking_off, data/merged_boundaries and data/control_text. Raises InputError.
    """
    counts: Counter[str] = Counter()
    format = setting.format
    bos = format.tokenizer.bos_token_id

    positions = known_positions(setting.path)

    def make(records: Sequence[R], held_out: bool, first: int) -> Sequence[Example | None]:
        alike = issubclass(kind, Comparison)
        examples = fit_examples(tokenize(records), options, budget, bos, counts, alike=alike)
        check_positions(longest_of(examples), setting.path, positions)
        if not held_out:
            _count_unknown(format.tokenizer, [s for example in examples for s in example or ()], counts)
        return examples

    tokens = [format.tokenizer.get_vocab(), format.hash]
    found = read_examples(options, kind, make, (counts, format.counts), run, seed, tokens)
    _say_unknown(counts)
    counts += _contract_counts(format)
    logged = {f"data/{name}": n for name, n in counts.items() if name != "tokens"}
    run.log(0, {**found.sizes(), **logged})
    return found.train, found.validation, found.held_out


def longest_of(examples: Sequence[Example | None]) -> int:
    """The length of the longest sequence; 0 without one."""
    return max((len(sequence.ids) for example in examples for sequence in example or ()), default=0)


def check_positions(longest: int, path: str, positions: int | None) -> None:
    """Raises InputError for a sequence that is longer than the model's table of positions."""
    if positions is not None and longest > positions:
        raise InputError(
            f"data.max_length: a sequence has {longest} tokens, and {path} knows {positions} positions: give "
            f"max_length: {positions}, and data.over_long"
        )


def _count_unknown(
    tokenizer: PreTrainedTokenizerBase, sequences: Sequence[TokenSequence], counts: Counter[str]
) -> None:
    """Count the tokens, and how many of them are the unknown one."""
    others = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    counts["tokens"] += sum(len(sequence.ids) for sequence in sequences)
    if tokenizer.unk_token_id not in {None, *others}:
        counts["unknown_tokens"] += sum(list(sequence.ids).count(tokenizer.unk_token_id) for sequence in sequences)


def _say_unknown(counts: Counter[str]) -> None:
    """Said aloud: nothing else shows that the vocabulary lacks a word."""
    if counts["unknown_tokens"]:
        logger.warning(
            f"data: {counts['unknown_tokens']:,} of {counts['tokens']:,} tokens are unknown to the model's tokenizer; "
            "nothing is learnt of them"
        )


def _contract_counts(format: ChatFormat) -> Counter[str]:
    """What the token contract met in the data; said aloud where something is not learnt for it."""
    names = ("unextended_turns", "thinking_off", "merged_boundaries", "control_text")
    counts = Counter({name: format.counts[name] for name in names})
    counts["unrendered"] = sum(n for part, n in format.counts.items() if part.startswith("unrendered"))
    if counts["unrendered"]:
        logger.warning(f"data: the chat template leaves out {counts['unrendered']:,} parts of messages")
    if counts["unextended_turns"]:
        logger.warning(
            f"data: {counts['unextended_turns']:,} of {format.counts['sequences']:,} answers have weight 0: the chat "
            "template prints them differently once the conversation goes on"
        )
    return counts


def fit_examples(
    examples: Sequence[Sequence[TokenSequence]],
    options: DataOptions,
    budget: int,
    bos_id: int | None,
    counts: Counter[str],
    *,
    alike: bool = True,
) -> list[list[TokenSequence] | None]:
    """Each example within data.max_length, or None where it is skipped. With `alike` (a ranking) its sequences are
    kept or skipped together and cut alike; else (the turns of a conversation) each by itself. Raises InputError where
    one exceeds the token budget: runtime options must not change what is trained."""

    def fit(example: Sequence[TokenSequence]) -> list[TokenSequence] | None:
        parts = [example] if alike else [[sequence] for sequence in example]
        fitted = [fit_length(p, options.max_length, options.over_long, bos_id=bos_id, counts=counts) for p in parts]
        return [sequence for part in fitted for sequence in part or ()] or None

    fitted = [fit(example) for example in examples]
    longest = longest_of(fitted)
    if longest > budget:
        raise InputError(
            f"runtime.token_budget: {budget} is less than a sequence of {longest} tokens; raise it, or lower "
            "data.max_length"
        )
    return fitted


def sequences_of(
    format: ChatFormat, records: Sequence[Record], turns: Literal["all", "last"] = "last"
) -> list[list[TokenSequence]]:
    """What an offline stage trains on: of demonstrations all or the last of the assistant's turns, of labelled
    responses and of rankings every response."""
    demonstrations = [record for record in records if isinstance(record, Demonstration)]
    if demonstrations:
        return format.turns_of([(record.messages, record.tools) for record in demonstrations], turns)
    if feedback := [record for record in records if isinstance(record, Feedback)]:
        return labelled_sequences(format, feedback)
    return ranked_sequences(format, [record for record in records if isinstance(record, Comparison)])


def ranked_sequences(format: ChatFormat, comparisons: Sequence[Comparison]) -> list[list[TokenSequence]]:
    """One sequence per response, with its rank (1 = best, wherever a row begins to count) and, where rated, its score
    as columns."""
    items = [(c.prompt, response, c.tools) for c in comparisons for response in c.responses]
    sequences = iter(format.completions(items))
    examples: list[list[TokenSequence]] = []
    for comparison in comparisons:
        best = min(comparison.ranks)
        columns = [{"rank": 1.0 + rank - best, "rating": 0.0} for rank in comparison.ranks]
        for column, rating in zip(columns, comparison.margins or (), strict=False):
            column["rating"] = rating
        examples.append([_with(next(sequences), column) for column in columns])
    return examples


def labelled_sequences(format: ChatFormat, feedback: Sequence[Feedback]) -> list[list[TokenSequence]]:
    """One sequence per response, with its label (1 good, 0 bad) as column "good"."""
    sequences = format.completions([(verdict.prompt, verdict.response, verdict.tools) for verdict in feedback])
    return [[_with(s, {"good": float(v.label)})] for s, v in zip(sequences, feedback, strict=True)]


def _with(sequence: TokenSequence, columns: dict[str, float]) -> TokenSequence:
    return TokenSequence(sequence.ids, sequence.weights, columns=columns)


def finish(run: Run, result: FitResult, metrics: dict[str, Any] | None = None) -> None:
    """Mark an offline stage's run done; its own metrics stand first."""
    run.finish({**(metrics or {}), **result.metrics}, result.throughput, result.peak_memory_bytes, run.model_dir)
    discard_examples(run)
