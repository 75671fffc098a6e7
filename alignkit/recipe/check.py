"""Checks what a recipe will read: its data, and the token contract over it. It loads no weights and trains nothing."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from alignkit.chat import ChatFormat
from alignkit.config import Config, InputError
from alignkit.data.load import load_data
from alignkit.models import load_tokenizer
from alignkit.options.shared import DataOptions, ModelOptions
from alignkit.packing import TokenSequence
from alignkit.prepare import fit_examples, ranked_sequences
from alignkit.recipe.chain import Step
from alignkit.recipe.hub import tokenizer_folder
from alignkit.recipe.identity import existing
from alignkit.recipe.read import REFERENCE
from alignkit.records import Comparison, Demonstration, Document, Prompt, Record

RECORDS: dict[str, type[Record]] = {
    "pretrain": Document,
    "sft": Demonstration,
    "reward": Comparison,
    "dpo": Comparison,
    "ppo": Prompt,
    "evaluate": Prompt,
}
"""What each type of stage reads."""


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
    config = step.stage.config
    data = getattr(config, "data", None)
    if not isinstance(data, DataOptions) or (data.path is not None and REFERENCE.fullmatch(data.path)):
        return Checked(step.stage.name, 0, note="nothing to read yet")
    train, validation, _ = load_data(data, RECORDS[step.stage.type], config.model_dump().get("seed", 0))
    records = [*train, *validation]
    format = _format(step, steps)
    if step.stage.type == "pretrain" or format is None:
        note = "" if step.stage.type == "pretrain" else "tokens are checked when the model they are for is there"
        return Checked(step.stage.name, len(records), note=note)
    examples = _examples(step.stage.type, config, records, format)
    counts: Counter[str] = Counter()
    budget, bos = step.stage.runtime.token_budget, format.tokenizer.bos_token_id
    kept = fit_examples(examples, data, budget, bos, counts)
    lengths = [len(sequence.ids) for example in kept if example for sequence in example]
    if not lengths:
        raise InputError(f"data: none of {len(records)} records is left; look at data.max_length and data.over_long")
    return Checked(step.stage.name, len(records), len(lengths), sum(lengths), max(lengths), counts.total())


def _examples(kind: str, config: Config, records: Sequence[Record], format: ChatFormat) -> list[list[TokenSequence]]:
    """What the stage will make of its records."""
    if kind == "sft":
        turns = [(record.messages, record.tools) for record in records if isinstance(record, Demonstration)]
        return format.turns_of(turns, config.model_dump()["turns"])
    if kind in ("reward", "dpo"):
        return ranked_sequences(format, [record for record in records if isinstance(record, Comparison)])
    prompts = format.prompts([(record.messages, record.tools) for record in records if isinstance(record, Prompt)])
    return [[TokenSequence(ids, [0.0] * len(ids))] for ids in prompts]


def _format(step: Step, steps: Mapping[str, Step]) -> ChatFormat | None:
    """The format the stage's model will have; None where its tokenizer is not made yet."""
    config = step.stage.config
    options = getattr(config, "model", None)
    if not isinstance(options, ModelOptions):
        values = config.model_dump()
        own = {key: values.get(key) for key in ("chat_template", "eos_token")}
        options = ModelOptions(path=values["models"][0], **own) if "models" in values else None
    while options is not None and (reference := REFERENCE.fullmatch(options.path)):
        parent = steps[reference[1]]
        if parent.state == "done" and parent.record is not None:
            options = options.model_copy(update={"path": str(parent.directory / parent.record.artifact)})
        else:
            inner = getattr(parent.stage.config, "model", None)
            options = inner if isinstance(inner, ModelOptions) else None
    if options is None:
        return None
    path = options.path if existing(options.path) else tokenizer_folder(options.path, step.stage.mark("model", "path"))
    template = options.chat_template
    return ChatFormat.load(load_tokenizer(str(Path(path))), template, options.eos_token, options.template_kwargs)
