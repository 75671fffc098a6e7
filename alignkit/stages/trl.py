"""Any of TRL's stable trainers as a stage: its algorithm, our data, lineage and artifact. Knows no other stage."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from huggingface_hub import constants
from transformers import PreTrainedTokenizerBase, TrainerCallback

from alignkit.calibration import check_reload, held_out_metrics, set_normalisation
from alignkit.config import InputError
from alignkit.data.load import load_data
from alignkit.data.placed import placed
from alignkit.examples_stored import discard_examples
from alignkit.generate import completion_of
from alignkit.lineage import is_adapter
from alignkit.loop import Example
from alignkit.models import save_policy
from alignkit.options.reward import RewardConfig
from alignkit.options.reward_source import RewardSource
from alignkit.options.shared import RuntimeOptions
from alignkit.options.trl import TrlConfig
from alignkit.prepare import Setting, load_examples, open_setting, sequences_of
from alignkit.progress import peak_memory_bytes
from alignkit.records import Prompt
from alignkit.rewards import build_reward
from alignkit.runs import Run, checkpoint_step
from alignkit.scorer import as_classifier, save_scorer
from alignkit.trl_rows import labelled_rows, padded_tokenizer, pair_rows, response_rows, whole_pair_rows
from alignkit.trl_trainers import TRAINERS, of_tokens, options_of, reference_at
from alignkit.trunk import plain_attention
from reward_models.scores import Reward, RewardFailure, checked, valued

REFERENCE_ROWS: int = RewardConfig.model_fields["reference_rows"].default
"""Training comparisons over whose responses mean and deviation of the score are taken, as in the stage reward."""


@dataclass(frozen=True, slots=True)
class _Job:
    """What every trainer is started with."""

    config: TrlConfig
    runtime: RuntimeOptions
    run: Run
    setting: Setting
    options: dict[str, Any]
    """Of the trainer, from the recipe."""


@dataclass(frozen=True, slots=True)
class _Given:
    """What a trainer learns from."""

    rows: list[dict[str, Any]]
    held_out: list[dict[str, Any]]
    more: dict[str, Any]
    """Further arguments of the trainer."""
    spoken: Mapping[str, Sequence[int]]
    """The ids of each prompt, by its text."""


def run(config: TrlConfig, runtime: RuntimeOptions, run: Run, reward: Reward | None = None) -> Path:
    """Train with TRL's trainer, and return the folder of the artifact. `reward` replaces the recipe's."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # for processes of its own; this one has read it
    constants.HF_HUB_DISABLE_TELEMETRY = True
    options = options_of(config)
    setting = open_setting(config.model, runtime)
    job = _Job(config, runtime, run, setting, options)
    metrics = _train_scorer(job) if config.trainer == "reward" else _train_policy(job, reward)
    setting.accelerator.wait_for_everyone()
    rates = {"examples_per_second": metrics["train_samples_per_second"]}
    run.finish(_numbers(metrics), rates, peak_memory_bytes(setting.accelerator.device), run.model_dir)
    discard_examples(run)
    return run.model_dir


def _train_policy(job: _Job, reward: Reward | None) -> dict[str, Any]:
    config, setting = job.config, job.setting
    given = _prompts(job, config.reward, reward) if config.reward is not None else _answers(job)
    policy = setting.policy(config.model, config.seed)
    lies_there = not is_adapter(config.model.path) and not setting.format.new_ids
    needed = policy.adapted is None and not lies_there and config.trainer != "sft"
    folder = job.run.directory / "reference"
    with policy.plain() as model, reference_at(model, folder, setting.accelerator) if needed else nullcontext():
        head: Any = model.get_output_embeddings()
        if not hasattr(head, "bias"):  # peft's layer for rows of new tokens, which TRL asks for one
            head.bias = None
        metrics = _trained(job, policy.adapted or model, given, setting.format.tokenizer)
    if job.run.is_main:
        save_policy(policy, setting.format, job.run.model_dir)
    return metrics


def _answers(job: _Job) -> _Given:
    """Demonstrations, rankings or labelled responses, in tokens."""
    train, validation, _ = _examples(job)
    size = job.options.get("per_device_train_batch_size", TRAINERS["kto"][1].per_device_train_batch_size)
    make: Callable[[Sequence[Example]], list[dict[str, Any]]] = {
        "sft": labelled_rows,
        "dpo": pair_rows,
        "kto": lambda examples: response_rows(examples, size),
    }[job.config.trainer]
    return _Given(make(train), make(validation), {}, {})


def _examples(job: _Job) -> Any:
    """(to train on, held out, the records that are held out)."""
    config, setting = job.config, job.setting
    kind = TRAINERS[config.trainer][2]
    tokenize = partial(sequences_of, setting.format)
    return load_examples(config.data, kind, tokenize, setting, job.run, config.seed, job.runtime.token_budget)


def _prompts(job: _Job, source: RewardSource, reward: Reward | None) -> _Given:
    """Prompts, in tokens, and what their completions are worth."""
    config, setting, format = job.config, job.setting, job.setting.format
    train, validation, sources = load_data(config.data, Prompt, config.seed)
    job.run.add_data(sources)
    prompts = [*train, *validation]
    ids = placed(config.data, prompts, lambda some: format.prompts([(one.messages, one.tools) for one in some]))
    texts = [format.asked(prompt.messages, prompt.tools) for prompt in prompts]
    rows = [{"prompt": text, "number": number} for number, text in enumerate(texts)]
    if reward is None:
        held: dict[str, Any] = {"device": setting.accelerator.device, "precision": setting.precision}
        reward = build_reward(source, **held, allow_code=job.runtime.allow_code)
    functions = {"reward_funcs": trl_reward(reward, prompts, setting, source.kind)}
    return _Given(rows[: len(train)], rows[len(train) :], functions, dict(zip(texts, ids, strict=True)))


def _train_scorer(job: _Job) -> dict[str, Any]:
    """A scorer's parameters, trained as a SequenceClassification model, whose head has no bias."""
    config, format, budget, folder = job.config, job.setting.format, job.runtime.token_budget, job.run.model_dir
    train, validation, _ = _examples(job)
    scorer = job.setting.scorer(config.model, config.seed)
    torch.nn.init.zeros_(scorer.head.bias).requires_grad_(False)
    classifier = as_classifier(scorer)
    if classifier is scorer.model.base_model:
        kind = scorer.model.config.model_type
        raise InputError(f"trainer: reward: {kind} has no SequenceClassification class; use a stage of type reward")
    given = _Given(whole_pair_rows(train), whole_pair_rows(validation), {}, {})
    tokenizer = padded_tokenizer(format.tokenizer, [*given.rows, *given.held_out])
    with plain_attention(scorer.model):
        metrics = _trained(job, classifier, given, tokenizer)
    scorer.eval()
    if job.run.is_main:
        set_normalisation(scorer, train[:REFERENCE_ROWS], budget)
        save_scorer(scorer, format, folder)
        check_reload(scorer, folder, [train[0]], budget)
        metrics |= {"score_mean": scorer.mean.item(), "score_deviation": scorer.deviation.item()}
        metrics |= held_out_metrics(scorer, validation, budget) if validation else {}
    return metrics


def _trained(job: _Job, model: Any, given: _Given, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Run the trainer on the model, in place, and return what it measured."""
    trainer = _trainer(job, model, given, tokenizer)
    resumed = job.run.latest_checkpoint()
    if resumed is not None:
        job.run.truncate(checkpoint_step(resumed))
    try:
        found = trainer.train(resume_from_checkpoint=None if resumed is None else str(resumed))
    except RewardFailure:
        if trainer.state.global_step:
            trainer._save_checkpoint(trainer.model, trial=None)
        raise
    return dict(found.metrics) | (trainer.evaluate() if given.held_out else {})


def _trainer(job: _Job, model: Any, given: _Given, tokenizer: PreTrainedTokenizerBase) -> Any:
    """Raises InputError where it refuses its options."""
    try:
        arguments = TRAINERS[job.config.trainer][1](
            **job.options,
            output_dir=str(job.run.checkpoints_dir),
            seed=job.config.seed,
            report_to=[],
            use_cpu=job.setting.accelerator.device.type == "cpu",
            bf16=job.setting.precision == "bf16",
            logging_steps=job.runtime.log_every,
        )
        return of_tokens(job.config.trainer, given.spoken)(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_list(given.rows),
            eval_dataset=Dataset.from_list(given.held_out) if given.held_out else None,
            processing_class=tokenizer,
            callbacks=[_Log(job.run)],
            **given.more,
        )
    except (ValueError, ImportError) as error:
        raise InputError(f"options: TRL's trainer {job.config.trainer} refuses them: {error}") from error


def trl_reward(reward: Reward, prompts: Sequence[Prompt], setting: Setting, name: str) -> Callable[..., list[float]]:
    """Our reward as TRL calls one: with token ids, and the number of each completion's prompt."""

    def score(completion_ids: list[list[int]], number: list[int], **_: Any) -> list[float]:
        pairs = zip(number, completion_ids, strict=True)
        completions = [completion_of(prompts[n], ids, setting.format) for n, ids in pairs]
        return list(checked(valued(completions, reward, name).whole, completions, name).total)

    return score


class _Log(TrainerCallback):
    """Brings what TRL logs into the run's metrics."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        self.run.log(state.global_step, _numbers(logs or {}))


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
