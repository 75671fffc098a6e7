"""Supervised fine-tuning: next-token training on the assistant's turns. Knows no other stage."""

from collections.abc import Sequence
from pathlib import Path

from alignkit.loop import Objective, Sums, fit
from alignkit.models import save_policy
from alignkit.objective import Readings
from alignkit.options.sft import SftConfig
from alignkit.options.shared import RuntimeOptions
from alignkit.policy import Policy
from alignkit.prepare import finish, load_examples, open_setting
from alignkit.records import Demonstration
from alignkit.runs import Run
from alignkit.trie import TokenSequence, TrieBatch


def run(config: SftConfig, runtime: RuntimeOptions, run: Run) -> Path:
    """Fine-tune, and return the folder of the artifact."""
    setting = open_setting(config.model, runtime)
    format = setting.format

    def tokenize(records: Sequence[Demonstration]) -> list[list[TokenSequence]]:
        return format.turns_of([(record.messages, record.tools) for record in records], config.turns)

    train, validation, _ = load_examples(
        config.data, Demonstration, tokenize, setting, run, config.seed, runtime.token_budget
    )
    policy = setting.policy(config.model, config.seed)

    def save(folder: Path) -> None:
        save_policy(policy, format, folder)

    result = fit(
        policy, train, validation, OBJECTIVE, config.train, runtime, run, config.seed, setting.accelerator, save
    )
    finish(run, result)
    return run.model_dir


def _read(policy: Policy, batch: TrieBatch) -> Readings:
    return {"logps": policy(batch).logps}


def _loss(readings: Readings, batch: TrieBatch) -> Sums:
    return Sums({"nll": -(batch.weight * readings["logps"]).sum()})


def _count(batch: TrieBatch) -> dict[str, float]:
    return {"nll": batch.weight.sum().item()}


OBJECTIVE = Objective(_read, _loss, _count)
"""Σ w·(-log p) / Σ w over supervised tokens, in nats per token."""
