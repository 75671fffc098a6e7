"""Any of TRL's stable trainers as a stage: its algorithm, our data, lineage and artifact. Knows no other stage."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from alignkit.calibration import check_reload, held_out_metrics, set_normalisation
from alignkit.config import InputError
from alignkit.data.load import load_data
from alignkit.generate import completion_of
from alignkit.models import save_policy
from alignkit.options.reward import RewardConfig
from alignkit.options.shared import RuntimeOptions
from alignkit.options.trl import TrlConfig
from alignkit.prepare import Setting, load_examples, open_setting, ranked_sequences
from alignkit.progress import peak_memory_bytes
from alignkit.records import Comparison, Demonstration, Feedback, Prompt, Record
from alignkit.rewards import build_reward
from alignkit.runs import Run
from alignkit.scorer import as_classifier, save_scorer
from alignkit.trie import TokenSequence
from alignkit.trl_rows import padded_tokenizer, pair_rows, rows_of
from alignkit.trunk import plain_attention
from reward_models.scores import Reward, checked, valued

TRAINERS: dict[str, tuple[type[Any], type[Any], type[Record]]] = {
    "sft": (trl.SFTTrainer, trl.SFTConfig, Demonstration),
    "reward": (trl.RewardTrainer, trl.RewardConfig, Comparison),
    "dpo": (trl.DPOTrainer, trl.DPOConfig, Comparison),
    "kto": (trl.KTOTrainer, trl.KTOConfig, Feedback),
    "grpo": (trl.GRPOTrainer, trl.GRPOConfig, Prompt),
    "rloo": (trl.RLOOTrainer, trl.RLOOConfig, Prompt),
}
"""Trainer, its configuration, and the records it is given."""
OURS = ("output_dir", "seed", "report_to", "use_cpu", "bf16", "fp16", "logging_steps")
"""Fields of the configuration that alignkit sets."""
SPOKEN = ("chat_template_path", "eos_token", "pad_token", "max_length")
"""Those that a reward model gets under model and data."""
REFERENCE_ROWS: int = RewardConfig.model_fields["reference_rows"].default
"""Training comparisons over whose responses mean and deviation of the score are taken, as in the stage reward."""


@dataclass(frozen=True, slots=True)
class _Job:
    """What every trainer is started with."""

    config: TrlConfig
    runtime: RuntimeOptions
    run: Run
    setting: Setting
    arguments: dict[str, Any]
    """Of the trainer, from the recipe."""


def run(config: TrlConfig, runtime: RuntimeOptions, run: Run, reward: Reward | None = None) -> Path:
    """Train with TRL's trainer, and return the folder of the artifact. `reward` replaces the recipe's."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    arguments = arguments_of(config)
    setting = open_setting(config.model, runtime)
    job = _Job(config, runtime, run, setting, arguments)
    metrics = _train_scorer(job) if config.trainer == "reward" else _train_policy(job, reward)
    setting.accelerator.wait_for_everyone()
    rates = {"examples_per_second": metrics["train_samples_per_second"]}
    run.finish(_numbers(metrics), rates, peak_memory_bytes(setting.accelerator.device), run.model_dir)
    return run.model_dir


def _train_policy(job: _Job, reward: Reward | None) -> dict[str, Any]:
    config, setting = job.config, job.setting
    train, validation, sources = load_data(config.data, TRAINERS[config.trainer][2], config.seed)
    job.run.add_data(sources)
    policy = setting.policy(config.model, config.seed)
    more: dict[str, Any] = {}
    if config.reward is not None:
        held: dict[str, Any] = {"device": setting.accelerator.device, "precision": setting.precision}
        if reward is None:
            reward = build_reward(config.reward, **held, allow_code=job.runtime.allow_code)
        more["reward_funcs"] = trl_reward(reward, [*train, *validation], setting, config.reward.kind)
    spoken = config.model.template_kwargs
    if config.reward is not None:
        tooled = next((one for one in (*train, *validation) if isinstance(one, Prompt) and one.tools), None)
        if tooled is not None:
            asked = tooled.messages[-1].content[:60]
            raise InputError(f"trainer: {config.trainer} takes no prompts with tools, and {asked!r} has some; use ppo")
        job.arguments["chat_template_kwargs"] = {**spoken, **(job.arguments.get("chat_template_kwargs") or {})}
        spoken = {}
    rows = [row for n, record in enumerate(train) for row in rows_of(record, n, spoken)]
    held_out = [row for n, record in enumerate(validation, len(train)) for row in rows_of(record, n, spoken)]
    with policy.plain() as model:
        metrics = _trained(job, policy.adapted or model, rows, held_out, setting.format.tokenizer, more)
    if job.run.is_main:
        save_policy(policy, setting.format, job.run.model_dir)
    return metrics


def _train_scorer(job: _Job) -> dict[str, Any]:
    """A scorer's parameters, trained as a SequenceClassification model, whose head has no bias."""
    config, format, budget, folder = job.config, job.setting.format, job.runtime.token_budget, job.run.model_dir

    def tokenize(records: Sequence[Comparison]) -> list[list[TokenSequence]]:
        return ranked_sequences(format, records)

    train, validation, _ = load_examples(config.data, Comparison, tokenize, job.setting, job.run, config.seed, budget)
    scorer = job.setting.scorer(config.model, config.seed)
    torch.nn.init.zeros_(scorer.head.bias).requires_grad_(False)
    classifier = as_classifier(scorer)
    if classifier is scorer.model.base_model:
        kind = scorer.model.config.model_type
        raise InputError(f"trainer: reward: {kind} has no SequenceClassification class; use a stage of type reward")
    rows, held_out = pair_rows(train), pair_rows(validation)
    tokenizer = padded_tokenizer(format.tokenizer, [*rows, *held_out])
    with plain_attention(scorer.model):
        metrics = _trained(job, classifier, rows, held_out, tokenizer, {})
    scorer.eval()
    if job.run.is_main:
        set_normalisation(scorer, train[:REFERENCE_ROWS], budget)
        save_scorer(scorer, format, folder)
        check_reload(scorer, folder, [train[0]], budget)
        metrics |= {"score_mean": scorer.mean.item(), "score_deviation": scorer.deviation.item()}
        metrics |= held_out_metrics(scorer, validation, budget) if validation else {}
    return metrics


def _trained(
    job: _Job,
    model: Any,
    rows: list[dict[str, Any]],
    held_out: list[dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    more: dict[str, Any],
) -> dict[str, Any]:
    """Run the trainer on the model, in place, and return what it measured."""
    trainer_type, arguments_type, _ = TRAINERS[job.config.trainer]
    trainer = trainer_type(
        model=model,
        args=arguments_type(
            **job.arguments,
            output_dir=str(job.run.directory / "trl"),
            seed=job.config.seed,
            report_to=[],
            use_cpu=job.setting.accelerator.device.type == "cpu",
            bf16=job.setting.precision == "bf16",
            logging_steps=job.runtime.log_every,
        ),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(held_out) if held_out else None,
        processing_class=tokenizer,
        callbacks=[_Log(job.run)],
        **more,
    )
    resumed = get_last_checkpoint(trainer.args.output_dir) if Path(trainer.args.output_dir).is_dir() else None
    if resumed:
        job.run.truncate(int(resumed.rpartition("-")[2]))
    found = trainer.train(resume_from_checkpoint=resumed)
    return dict(found.metrics) | (trainer.evaluate() if held_out else {})


def arguments_of(config: TrlConfig) -> dict[str, Any]:
    """The options as they go to TRL. Raises InputError for one that it does not have or that alignkit sets."""
    arguments_type = TRAINERS[config.trainer][1]
    known = [field.name for field in fields(arguments_type) if field.init and field.name not in OURS]
    for name in config.options:
        if config.trainer == "reward" and name in SPOKEN:
            raise InputError(
                f"options.{name}: remove it; a reward model's template and length stand in model and data"
            )
        if name in OURS:
            raise InputError(f"options.{name} is set by alignkit; remove it (seed, data, runtime stand in the recipe)")
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise InputError(
                f"options.{name}: {arguments_type.__name__} (trl {trl.__version__}) has no such field{hint}"
            )
    return dict(config.options) | ({"max_length": None} if config.trainer == "reward" else {})


def trl_reward(reward: Reward, prompts: Sequence[Record], setting: Setting, name: str) -> Callable[..., list[float]]:
    """Our reward as TRL calls one: with token ids, and the number of each completion's prompt."""

    def score(completion_ids: list[list[int]], number: list[int], **_: Any) -> list[float]:
        asked = [prompt for n in number if isinstance(prompt := prompts[n], Prompt)]
        completions = [completion_of(p, ids, setting.format) for p, ids in zip(asked, completion_ids, strict=True)]
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
