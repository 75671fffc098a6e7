"""THE place where checkpoints are opened and saved: policies, LoRA, 4-bit, precision. Knows no stage and no data."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from alignkit.adapters import make_room, merged_folder, new_adapter, opened
from alignkit.attention import NAME
from alignkit.chat import ChatFormat, extend_embeddings
from alignkit.config import InputError
from alignkit.lineage import base_of, is_adapter
from alignkit.options.shared import ModelOptions
from alignkit.policy import Policy
from alignkit.products import use_onednn
from alignkit.selfcheck import DROPOUTS, why_not_tries

if TYPE_CHECKING:
    from peft import PeftModel

logger = logging.getLogger(__name__)

BY_TABLE = frozenset(("biogpt", "codegen", "ctrl", "gpt2", "gpt_bigcode", "gpt_neo", "gptj", "openai-gpt", "opt"))
"""Types of models that look positions up in a table; beyond it they fail."""
HEAD_FILE = "head.safetensors"
"""What makes a checkpoint a scorer: the head of `alignkit.scorer`."""


def load_tokenizer(path: str, option: str = "model.path") -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint. Raises InputError naming the option where there is none."""
    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(_missing(path, "tokenizer", error, option)) from error


def load_checkpoint(path: str, option: str = "model.path") -> PreTrainedModel:
    """A checkpoint's whole weights in their own precision, to be changed and saved again.

    Raises InputError naming the option for adapters, reward models, and where there is no language model.
    """
    if is_adapter(path):
        raise InputError(f"{option}: {path!r} is a LoRA adapter; name its base, or a model with whole weights")
    if (Path(path) / HEAD_FILE).is_file():
        raise InputError(f"{option}: {path!r} is a reward model, which cannot speak; name a language model")
    try:
        return AutoModelForCausalLM.from_pretrained(path, dtype="auto")
    except (OSError, ValueError, KeyError) as error:
        raise InputError(_missing(path, "model", error, option)) from error


def _missing(path: str, what: str, error: Exception, option: str = "model.path") -> str:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if not Path(path).exists() and "/" in path and not path.startswith((".", "/")):
        return f"{option}: {path!r} is no folder here, and the hub did not answer: give a local folder"
    return f"{option}: no {what} can be loaded from {path!r}: {reason}"


def known_positions(path: str) -> int | None:
    """How many positions the model in a folder has a table for; None where it computes any, or lies elsewhere."""
    base = base_of(path)
    if not (Path(base) / "config.json").is_file():
        return None
    config = AutoConfig.from_pretrained(base).get_text_config()
    return config.max_position_embeddings if config.model_type in BY_TABLE else None


def load_policy(
    options: ModelOptions,
    *,
    device: torch.device | str = "cpu",
    precision: Literal["float32", "bf16"] = "float32",
    trainable: bool = True,
    seed: int = 0,
    format: ChatFormat | None = None,
    dropout: bool = False,
) -> Policy:
    """The policy of a checkpoint or of an artifact, with new or continued LoRA adapters where the options ask.

    Trained weights are float32; frozen ones are float32 or bfloat16 as `precision` says, or 4-bit NF4. Tokens that
    `format` brought get rows in the embeddings, which are trained with the adapters too. With `dropout` whole weights
    keep the dropout of their configuration; else there is none but LoRA's own.
    """
    if (Path(options.path) / HEAD_FILE).is_file():
        raise InputError(f"model.path: {options.path!r} is a reward model, which cannot speak; name a language model")
    model, adapted, tries = load_model(options, device, precision, trainable, seed, format, dropout)
    return Policy(model, adapted, tries)


def load_model(
    options: ModelOptions,
    device: torch.device | str,
    precision: str,
    trainable: bool,
    seed: int,
    format: ChatFormat | None = None,
    dropout: bool = False,
) -> tuple[PreTrainedModel, "PeftModel | None", bool]:
    """(model, its PEFT wrapper or None, whether tries hold on it) of a checkpoint.

    Always the causal class: an adapter's names then fit whatever head its model has.
    """
    new_ids = format.new_ids if format else ()
    frozen = options.lora is not None or options.load_in_4bit or not trainable
    dtype = torch.bfloat16 if frozen and precision == "bf16" else torch.float32
    place = torch.device(device)
    if not is_adapter(options.path):
        if options.adapter == "continue":
            raise InputError(f"model.adapter: {options.path!r} holds whole weights, no adapter to continue; remove it")
        model, tries = _open(options.path, dtype, place, options.load_in_4bit, dropout)
        adapted = None
    elif options.adapter == "continue":
        if new_ids and trainable:
            raise InputError(
                f"model.adapter: continue cannot train rows for {len(new_ids)} tokens that the adapter does not know "
                "(model.chat_template brings them): merge it, with model.lora for a new one, or keep its template"
            )
        model, tries = _open_base(options.path, dtype, place, options.load_in_4bit)
        adapted = opened(model, options.path, trainable=trainable)
        adapted.load_adapter(options.path, adapter_name="reference", is_trainable=False)
        adapted.set_adapter("default")
    else:
        model, tries = _open_merged(options, dtype, place)
        adapted = None
    if format:
        extend_embeddings(model, format.tokenizer, new_ids)
    if options.lora is not None and trainable:
        adapted = new_adapter(model, options.lora, seed, new_ids)
        model = adapted.get_base_model()
    elif adapted is None and frozen:
        model.requires_grad_(False)
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.is_floating_point():
            parameter.data = parameter.data.float()
    return model, adapted, tries


def _open(path: str, dtype: torch.dtype, device: torch.device, four_bit: bool, dropout: bool = False) -> Any:
    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(_missing(path, "model configuration", error)) from error
    for name in DROPOUTS if not dropout else ():
        if hasattr(config, name):
            setattr(config, name, 0.0)
    reason = why_not_tries(config)
    if reason:
        logger.warning(f"{path}: tries do not hold on {config.model_type} ({reason}); separate passes are used")
    arguments: dict[str, Any] = {} if reason else {"attn_implementation": NAME}
    if four_bit:
        arguments["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16 if device.type == "cuda" else torch.float32,
            bnb_4bit_quant_storage=torch.bfloat16 if device.type == "cuda" else torch.uint8,
        )
        arguments["device_map"] = {"": device}
    try:
        model = AutoModelForCausalLM.from_pretrained(path, config=config, dtype=dtype, **arguments)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(_missing(path, "model", error)) from error
    for module in model.modules() if four_bit else ():
        # On some CPUs a pass without gradient would re-round the 4-bit scales to bfloat16, in place and for good.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    use_onednn(model)
    return (model if four_bit else model.to(device)).eval(), reason is None


def _open_base(path: str, dtype: torch.dtype, device: torch.device, four_bit: bool) -> tuple[Any, bool]:
    """The base of an adapter, with rows for the tokens that the adapter brings."""
    model, tries = _open(base_of(path), dtype, device, four_bit)
    make_room(model, path)
    return model, tries


def _open_merged(options: ModelOptions, dtype: torch.dtype, device: torch.device) -> tuple[Any, bool]:
    """The incoming adapter merged into its base: in memory, or on disk where a new adapter will need that base."""
    if options.lora is not None or options.load_in_4bit:
        return _open(str(merged_folder(options.path)), dtype, device, options.load_in_4bit)
    model, tries = _open_base(options.path, dtype, device, False)
    merged: Any = opened(model, options.path).merge_and_unload()
    return merged.requires_grad_(True), tries


def save_policy(policy: Policy, format: ChatFormat, directory: Path) -> None:
    """Write a folder that plain `from_pretrained` loads: whole weights, or the adapter where there is one."""
    save_model(policy.model, policy.adapted, directory)
    format.save(directory, policy.model)


def save_model(model: PreTrainedModel, adapted: "PeftModel | None", directory: Path) -> None:
    """The weights of a model, or its trained adapter, as safetensors."""
    if adapted is not None:
        adapted.save_pretrained(directory, selected_adapters=["default"], save_embedding_layers=False)
    else:
        model.save_pretrained(directory)
