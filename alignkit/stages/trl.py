"""Any of TRL's stable trainers as a stage: its algorithm, our data, lineage and artifact. Knows no other stage."""

import os
from collections.abc import Callable, Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from alignkit.config import InputError
from alignkit.data.load import load_data
from alignkit.generate import completion_of
from alignkit.losses import ranking_pairs
from alignkit.models import save_policy
from alignkit.options.shared import RuntimeOptions
from alignkit.options.trl import TrlConfig
from alignkit.prepare import Setting, open_setting
from alignkit.progress import peak_memory_bytes
from alignkit.records import Comparison, Demonstration, Feedback, Message, Prompt, Record
from alignkit.rewards import build_reward
from alignkit.runs import Run
from reward_models.scores import Reward, as_dict, checked

TRAINERS: dict[str, tuple[type[Any], type[Any], type[Record]]] = {
    "sft": (trl.SFTTrainer, trl.SFTConfig, Demonstration),
    "dpo": (trl.DPOTrainer, trl.DPOConfig, Comparison),
    "kto": (trl.KTOTrainer, trl.KTOConfig, Feedback),
    "grpo": (trl.GRPOTrainer, trl.GRPOConfig, Prompt),
    "rloo": (trl.RLOOTrainer, trl.RLOOConfig, Prompt),
}
"""Trainer, its configuration, and the records it is given."""
OURS = ("output_dir", "seed", "report_to", "use_cpu", "bf16", "fp16", "logging_steps")
"""Fields of the configuration that alignkit sets."""


def run(config: TrlConfig, runtime: RuntimeOptions, run: Run, reward: Reward | None = None) -> Path:
    """Train with TRL's trainer, and return the folder of the artifact. `reward` replaces the recipe's."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    trainer_type, arguments_type, kind = TRAINERS[config.trainer]
    arguments = arguments_of(config, arguments_type)
    setting = open_setting(config.model, runtime)
    train, validation, sources = load_data(config.data, kind, config.seed)
    run.add_data(sources)
    policy = setting.policy(config.model, config.seed)
    more: dict[str, Any] = {}
    if config.reward is not None:
        device, precision = setting.accelerator.device, setting.precision
        if reward is None:
            reward = build_reward(config.reward, device=device, precision=precision, allow_code=runtime.allow_code)
        more["reward_funcs"] = trl_reward(reward, [*train, *validation], setting, config.reward.kind)
    rows = [row for n, record in enumerate(train) for row in rows_of(record, n)]
    held_out = [row for n, record in enumerate(validation, len(train)) for row in rows_of(record, n)]
    with policy.plain() as model:
        trainer = trainer_type(
            model=policy.adapted or model,
            args=arguments_type(
                **arguments,
                output_dir=str(run.directory / "trl"),
                seed=config.seed,
                report_to=[],
                use_cpu=setting.accelerator.device.type == "cpu",
                bf16=setting.precision == "bf16",
                logging_steps=runtime.log_every,
            ),
            train_dataset=Dataset.from_list(rows),
            eval_dataset=Dataset.from_list(held_out) if held_out else None,
            processing_class=setting.format.tokenizer,
            callbacks=[_Log(run)],
            **more,
        )
        resumed = get_last_checkpoint(trainer.args.output_dir) if Path(trainer.args.output_dir).is_dir() else None
        if resumed:
            run.truncate(int(resumed.rpartition("-")[2]))
        found = trainer.train(resume_from_checkpoint=resumed)
        metrics = dict(found.metrics) | (trainer.evaluate() if held_out else {})
    if run.is_main:
        save_policy(policy, setting.format, run.model_dir)
    setting.accelerator.wait_for_everyone()
    rates = {"examples_per_second": metrics["train_samples_per_second"]}
    run.finish(_numbers(metrics), rates, peak_memory_bytes(setting.accelerator.device), run.model_dir)
    return run.model_dir


def arguments_of(config: TrlConfig, arguments_type: type[Any]) -> dict[str, Any]:
    """The options as they go to TRL. Raises InputError for one that it does not have or that alignkit sets."""
    known = [field.name for field in fields(arguments_type) if field.init and field.name not in OURS]
    for name in config.options:
        if name in OURS:
            raise InputError(f"options.{name} is set by alignkit; remove it (seed, data, runtime stand in the recipe)")
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise InputError(
                f"options.{name}: {arguments_type.__name__} (trl {trl.__version__}) has no such field{hint}"
            )
    return dict(config.options)


def rows_of(record: Record, number: int) -> list[dict[str, Any]]:
    """A record in TRL's conversational form; of a ranking, a row for each untied pair."""

    def plain(messages: Sequence[Message]) -> list[dict[str, Any]]:
        return [as_dict(message) for message in messages]

    match record:
        case Demonstration():
            return [{"prompt": plain(record.messages[:-1]), "completion": plain(record.messages[-1:])}]
        case Comparison():
            ranks = torch.tensor(record.ranks)
            better, worse, _ = ranking_pairs(ranks, torch.zeros_like(ranks))
            answers = [plain(response) for response in record.responses]
            pairs = zip(better.tolist(), worse.tolist(), strict=True)
            return [{"prompt": plain(record.prompt), "chosen": answers[b], "rejected": answers[w]} for b, w in pairs]
        case Feedback():
            return [{"prompt": plain(record.prompt), "completion": plain(record.response), "label": record.label}]
        case Prompt():
            return [{"prompt": plain(record.messages), "number": number}]
        case _:
            raise TypeError(f"no trainer takes a {type(record).__name__}")


def trl_reward(reward: Reward, prompts: Sequence[Record], setting: Setting, name: str) -> Callable[..., list[float]]:
    """Our reward as TRL calls one: with token ids, and the number of each completion's prompt."""

    def score(completion_ids: list[list[int]], number: list[int], **_: Any) -> list[float]:
        asked = [prompt for n in number if isinstance(prompt := prompts[n], Prompt)]
        completions = [completion_of(p, ids, setting.format) for p, ids in zip(asked, completion_ids, strict=True)]
        return list(checked(reward(completions).total, completions, name).total)

    return score


class _Log(TrainerCallback):
    """Brings what TRL logs into the run's metrics."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        self.run.log(state.global_step, _numbers(logs or {}))


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
