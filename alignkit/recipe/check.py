"""Checks what a recipe will read: its data, and the token contract over it. It loads no weights and trains nothing."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from pathlib import Path

from transformers import AutoConfig

from alignkit.chat import ChatFormat
from alignkit.config import InputError
from alignkit.data.load import load_data, places_of
from alignkit.data.placed import placed
from alignkit.data.streamed import open_stream
from alignkit.environment.episodes import open_episodes
from alignkit.environment.seam import announced
from alignkit.evaluation.table import references
from alignkit.evaluation.texts import KINDS, positions_of, text_sequences
from alignkit.guidelines import read_examples, read_guidelines, turns_between
from alignkit.judging import check_judge
from alignkit.options.critique import CritiqueConfig
from alignkit.options.evaluate import EvaluateConfig
from alignkit.options.mixture import is_streamed
from alignkit.options.ppo import PpoConfig
from alignkit.options.reward_source import RewardSource
from alignkit.options.sample import SampleConfig
from alignkit.options.sft import SftConfig
from alignkit.options.shared import DataOptions
from alignkit.options.trl import TrlConfig
from alignkit.prepare import fit_examples, sequences_of
from alignkit.prompts import fitting
from alignkit.recipe.artifacts import kind_read
from alignkit.recipe.chain import Step
from alignkit.recipe.inputs import data_of, formats_of
from alignkit.records import Candidates, Comparison, Completion, Message, Prompt, Record
from alignkit.rewards import build_reward
from alignkit.trie import TokenSequence

Prompted = PpoConfig | EvaluateConfig | SampleConfig | CritiqueConfig
"""The options of stages that have prompts answered."""
STREAMED = 10_000
"""Records of a streamed source that are checked."""


@dataclass(frozen=True)
class Checked:
    """What a check found in one stage."""

    stage: str
    records: int
    sequences: int = 0
    tokens: int = 0
    longest: int = 0
    """Tokens of the longest sequence."""
    left_out: int = 0
    """Records skipped or cut for their length."""
    note: str = ""


def check_steps(steps: Sequence[Step]) -> Iterator[Checked]:
    """Check each stage in turn. Raises InputError, naming the stage, at the first fault."""
    by_name = {step.stage.name: step for step in steps}
    for step in steps:
        try:
            yield _check(step, by_name)
        except InputError as error:
            raise InputError(f"{step.stage.mark()}: {error}") from error


def _check(step: Step, steps: Mapping[str, Step]) -> Checked:
    stage, config = step.stage, step.stage.config
    if isinstance(config, TrlConfig):
        import_module("alignkit.trl_trainers").options_of(config)  # imports trl
    data = data_of(getattr(config, "data", None), steps)
    if data is None:
        return Checked(stage.name, 0, note="nothing to read yet")
    config = config.model_copy(update={"data": data})
    kind = kind_read(stage.type, config)
    records = _records(data, kind, config.model_dump().get("seed", 0))
    if isinstance(config, SampleConfig) and config.model is None:
        _check_labels(config, [one for one in records if isinstance(one, Candidates)])
        return Checked(stage.name, len(records), note="their own responses are labelled")
    formats = [] if stage.type == "pretrain" else formats_of(step, steps)
    there = [format for format in formats if format is not None]
    note = f"the first {STREAMED:,} records of each source" if is_streamed(data) else ""
    note = note if len(there) == len(formats) else "tokens are checked when the model they are for is there"
    if isinstance(config, Prompted):
        prompts = [one for one in records if isinstance(one, Prompt)]
        lengths, left_out = _check_prompts(step, config, prompts, there, steps)
    elif there and kind is Prompt:  # those of TRL's online trainers
        prompts = [one for one in records if isinstance(one, Prompt)]
        lengths, left_out = _lengths(data, prompts, there[0]), 0
    elif there:
        counts: Counter[str] = Counter()
        bos, budget, alike = there[0].tokenizer.bos_token_id, stage.runtime.token_budget, kind is Comparison
        turns = config.turns if isinstance(config, SftConfig) else "last"

        def fitted(some: Sequence[Record]) -> list[list[TokenSequence] | None]:
            return fit_examples(sequences_of(there[0], some, turns), data, budget, bos, counts, alike=alike)

        kept = placed(data, records, fitted)
        lengths, left_out = [len(sequence.ids) for one in kept if one for sequence in one], counts.total()
    else:
        return Checked(stage.name, len(records), note=note)
    if there and not lengths:
        raise InputError(f"data: none of {len(records)} records is left; look at data.max_length and data.over_long")
    return Checked(stage.name, len(records), len(lengths), sum(lengths), max(lengths, default=0), left_out, note)


def _records(data: DataOptions, kind: type[Record], seed: int) -> list[Record]:
    """All records that a stage will use; of streamed ones the first of each source."""
    if is_streamed(data):
        streams = [open_stream(place, kind, data.on_invalid) for place in places_of(data)]
        return [record for stream in streams for record in islice(stream, STREAMED)]
    train, validation, _ = load_data(data, kind, seed)
    return [*train, *validation]


def _check_prompts(
    step: Step, config: Prompted, prompts: list[Prompt], formats: Sequence[ChatFormat], steps: Mapping[str, Step]
) -> tuple[list[int], int]:
    """The lengths of the prompts that will be used, as the first model reads them, and how many will not be.

    Raises InputError where they leave no room for answers, or lack what the answers are to be compared with.
    """
    budget = step.stage.runtime.token_budget
    more = 0
    if isinstance(config, CritiqueConfig):
        guidelines, examples = read_guidelines(config.guidelines), read_examples(config.guidelines)
        more = turns_between(formats[0], guidelines, config.max_new_tokens, examples) if formats else 0
    elif config.environment is not None:
        told, allow_code = config.environment, step.stage.runtime.allow_code
        prompts, more = announced(prompts, told, allow_code), told.max_tokens
        for format in formats:
            open_episodes(told, format, allow_code)
    kept = fitting(prompts, formats, config, budget, more) if formats else prompts
    _check_labels(config, kept)
    if isinstance(config, EvaluateConfig):
        references(kept, config)
        given = data_of(config.texts, steps)
        if given is not None:
            texts, _, _ = load_data(given, KINDS[config.texts_are], config.seed)
            for format in formats:
                text_sequences(format, texts, config.model_copy(update={"texts": given}), _positions(format), budget)
    return _lengths(config.data, kept, formats[0]) if formats else [], len(prompts) - len(kept)


def _lengths(data: DataOptions, prompts: Sequence[Prompt], format: ChatFormat) -> list[int]:
    """The tokens of each prompt. Raises InputError, naming the row, for one that the format cannot print."""
    ids = placed(data, prompts, lambda some: format.prompts([(one.messages, one.tools) for one in some]))
    return [len(one) for one in ids]


def _check_labels(config: Prompted, records: Sequence[Prompt | Candidates]) -> None:
    """Raise InputError where a reward or judge is seen to lack something, such as a column of the records."""
    for leaf in (leaf for source in _rewards(config) for leaf in source.leaves()):
        if leaf.kind == "lexicon" or (leaf.kind == "judge" and leaf.path is None):
            build_reward(leaf)
        if leaf.kind == "rules":
            rule = build_reward(leaf)
            placed(config.data, records, lambda some, rule=rule: rule([_unanswered(one) for one in some]))
    if isinstance(config, SampleConfig) and config.judge is not None:
        check_judge(config.judge)


def _unanswered(record: Prompt | Candidates) -> Completion:
    """What the record says, with an empty answer."""
    turns = record.messages if isinstance(record, Prompt) else record.prompt
    return Completion(prompt=turns, response=Message(role="assistant"), columns=record.columns)


def _rewards(config: Prompted) -> list[RewardSource]:
    """Every reward that the stage will ask."""
    if isinstance(config, CritiqueConfig):
        return []
    if isinstance(config, EvaluateConfig):
        return [source for source in (config.reward, config.gold) if source is not None]
    guard = config.guard.held_out if isinstance(config, PpoConfig) and config.guard is not None else None
    return [source for source in (config.reward, guard and guard.reward) if source is not None]


def _positions(format: ChatFormat) -> int | None:
    """Those of the model whose tokenizer this is; None where the folder holds an adapter, which does not say."""
    folder = Path(format.tokenizer.name_or_path)
    return positions_of(AutoConfig.from_pretrained(folder)) if (folder / "config.json").is_file() else None
