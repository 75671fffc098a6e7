"""Supervised fine-tuning: next-token training on the assistant's turns. Knows no other stage."""

from functools import partial
from pathlib import Path

from alignkit.likelihood import likelihood_objective
from alignkit.loop import fit
from alignkit.models import save_policy
from alignkit.options.sft import SftConfig
from alignkit.options.shared import RuntimeOptions
from alignkit.prepare import finish, load_examples, open_setting, sequences_of
from alignkit.records import Demonstration
from alignkit.runs import Run


def run(config: SftConfig, runtime: RuntimeOptions, run: Run) -> Path:
    """Fine-tune, and return the folder of the artifact."""
    setting = open_setting(config.model, runtime)
    format = setting.format

    tokenize = partial(sequences_of, format, turns=config.turns)
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


OBJECTIVE = likelihood_objective()
"""In nats per supervised token."""
