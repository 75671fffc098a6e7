"""TRL's trainers as a recipe names them: their options, checked, and their input, token ids. Knows no stage."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from difflib import get_close_matches
from enum import EnumType
from pathlib import Path
from typing import Any, get_args, get_type_hints

import trl
from accelerate import Accelerator
from pydantic import TypeAdapter, ValidationError
from transformers import PreTrainedModel

from alignkit.config import InputError
from alignkit.models import save_model
from alignkit.options.trl import TrlConfig
from alignkit.records import Comparison, Demonstration, Feedback, Prompt, Record

TRAINERS: dict[str, tuple[type[Any], type[Any], type[Record]]] = {
    "sft": (trl.SFTTrainer, trl.SFTConfig, Demonstration),
    "reward": (trl.RewardTrainer, trl.RewardConfig, Comparison),
    "dpo": (trl.DPOTrainer, trl.DPOConfig, Comparison),
    "kto": (trl.KTOTrainer, trl.KTOConfig, Feedback),
    "grpo": (trl.GRPOTrainer, trl.GRPOConfig, Prompt),
    "rloo": (trl.RLOOTrainer, trl.RLOOConfig, Prompt),
}
"""Trainer, its configuration, and the records it is given."""
OURS = ("output_dir", "seed", "report_to", "use_cpu", "bf16", "fp16", "logging_steps", "resume_from_checkpoint")
"""Fields of the configuration that alignkit sets."""
SPOKEN = (
    *("chat_template_path", "chat_template_kwargs", "eos_token", "pad_token", "max_length", "truncation_mode"),
    *("assistant_only_loss", "completion_only_loss", "dataset_text_field", "model_init_kwargs"),
)
"""Those that stand under model and data, since alignkit loads the model and tokenizes."""


def options_of(config: TrlConfig) -> dict[str, Any]:
    """The options as TRL's configuration takes them, values in its types. Raises InputError for one that it does not
    have, that has another type, or that alignkit sets."""
    arguments_type = TRAINERS[config.trainer][1]
    known = [field.name for field in fields(arguments_type) if field.init and field.name not in OURS]
    hints = get_type_hints(arguments_type)
    found: dict[str, Any] = {}
    for name, value in config.options.items():
        if name in OURS:
            raise InputError(f"options.{name} is set by alignkit; remove it (seed, data, runtime stand in the recipe)")
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise InputError(
                f"options.{name}: {arguments_type.__name__} (trl {trl.__version__}) has no such field{hint}"
            )
        if name in SPOKEN:
            raise InputError(
                f"options.{name}: remove it; alignkit loads and tokenizes, by what stands in model and data"
            )
        found[name] = _typed(name, value, hints[name])
    return found | ({"max_length": config.data.max_length} if "max_length" in known else {})


def _typed(name: str, value: Any, hint: Any) -> Any:
    """The value in the field's type; TRL itself would take a text for what is to be a number or a truth value."""
    named = [kind for kind in get_args(hint) if isinstance(kind, EnumType)] if isinstance(value, str) else []
    try:
        return TypeAdapter[Any](named[0] if named else hint).validate_python(value)
    except ValidationError as error:
        raise InputError(f"options.{name}: {value!r}: {error.errors()[0]['msg']}") from error


def of_tokens(trainer: str, spoken: Mapping[str, Sequence[int]]) -> type[Any]:
    """The trainer's class, for rows that hold token ids already; `spoken`: the ids of each prompt, by its text. Raises
    InputError where TRL's makes tokens elsewhere."""
    trainer_type = TRAINERS[trainer][0]

    def prepared(self: Any, dataset: Any, *_: Any) -> Any:
        return dataset

    def tokenized(self: Any, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [list(spoken[prompt]) for prompt in prompts], None, {}

    if trainer in ("sft", "reward"):  # which take such rows themselves
        return trainer_type
    change = ("_tokenize_prompts", tokenized) if trainer in ("grpo", "rloo") else ("_prepare_dataset", prepared)
    if not hasattr(trainer_type, change[0]):
        raise InputError(f"trainer: {trainer}: trl {trl.__version__} takes no token ids there; install trl 1.16")
    return type(trainer_type.__name__, (trainer_type,), dict([change]))


@contextmanager
def reference_at(model: PreTrainedModel, folder: Path, accelerator: Accelerator) -> Iterator[None]:
    """While open, the model as it is now lies in the folder, from where TRL reads a fully trained model's reference:
    one merged of base and adapter, or with rows for new tokens, lies nowhere else."""
    if accelerator.is_main_process:
        save_model(model, None, folder)
    accelerator.wait_for_everyone()
    named, model.config._name_or_path = model.config._name_or_path, str(folder)
    try:
        yield
    finally:
        model.config._name_or_path = named
    if accelerator.is_main_process:
        shutil.rmtree(folder)
