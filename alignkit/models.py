"""THE place where checkpoints are opened and saved: policies, LoRA, 4-bit, precision. Knows no stage and no data."""

import copy
import logging
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from alignkit.attention import NAME
from alignkit.chat import ChatFormat
from alignkit.config import InputError
from alignkit.options.shared import LoraOptions, ModelOptions
from alignkit.packing import TrieBatch
from alignkit.selfcheck import why_not_tries
from alignkit.trunk import plain_attention, replaced_trunk, run_trunk, trunk_of

logger = logging.getLogger(__name__)

# Logits of one chunk of predictions, in numbers: 256 MB in float32. Above it, chunks are recomputed backward.
CHUNK = 2**26
MERGED = ".merged"


@dataclass(frozen=True, slots=True)
class TokenLogProbs:
    """What leaves a policy."""

    logps: Tensor
    """[E] float32, log-probability of each entry's target, in nats."""
    entropies: Tensor | None
    """[E] float32, entropy of each prediction, in nats; only where asked for."""


class Policy(nn.Module):
    """A causal language model that takes rows of tries and gives log-probabilities, never logits."""

    def __init__(self, model: PreTrainedModel, adapted: PeftModel | None = None, tries: bool = True) -> None:
        super().__init__()
        self.model = model
        self.tries = tries
        # Kept out of the module tree: it wraps `model`, whose parameters would be listed twice.
        self._adapted = (adapted,)

    @property
    def adapted(self) -> PeftModel | None:
        """The PEFT wrapper, where LoRA adapters are in the model."""
        return self._adapted[0]

    def forward(
        self, batch: TrieBatch, *, temperature: float = 1.0, entropy: bool = False, barred: Sequence[int] = ()
    ) -> TokenLogProbs:
        """Log-probabilities (and entropies) of a row's entries at a sampling temperature.

        `barred` token ids are impossible where the entry column "barred" is not 0, as when they were sampled.
        """
        states = run_trunk(trunk_of(self.model), batch, self.tries)
        hidden = states.at(batch, batch.source, batch.owner)
        rows = max(1, CHUNK // self.model.get_output_embeddings().weight.shape[0])
        logps: list[Tensor] = []
        entropies: list[Tensor] = []
        held = batch.entry_columns.get("barred") if barred else None
        holds = [None] * len(batch.target) if held is None else held.split(rows)
        for chunk, target, hold in zip(hidden.split(rows), batch.target.split(rows), holds, strict=False):
            arguments = (chunk, target, temperature, entropy, states.output, hold, barred)
            if len(hidden) > rows and torch.is_grad_enabled():
                logp, entropic = checkpoint(self._head, *arguments, use_reentrant=False)
            else:
                logp, entropic = self._head(*arguments)
            logps.append(logp)
            entropies.append(entropic)
        return TokenLogProbs(torch.cat(logps), torch.cat(entropies) if entropy else None)

    def _head(
        self,
        hidden: Tensor,
        target: Tensor,
        temperature: float,
        entropy: bool,
        output: type[Any],
        hold: Tensor | None,
        barred: Sequence[int],
    ) -> tuple[Tensor, Tensor]:
        with replaced_trunk(self.model, output(last_hidden_state=hidden[None])):
            logits = self.model(input_ids=target[None], use_cache=False).logits[0].float()
        if temperature != 1.0:
            logits = logits / temperature
        if hold is not None:
            impossible = torch.zeros_like(logits, dtype=torch.bool)
            impossible[:, list(barred)] = (hold != 0)[:, None]
            logits = logits.masked_fill(impossible, -torch.inf)
        logp = -F.cross_entropy(logits, target, reduction="none")
        if not entropy:
            return logp, logp.new_zeros(0)
        log_distribution = logits.log_softmax(-1)
        return logp, -(log_distribution.exp() * log_distribution.clamp(min=torch.finfo(torch.float32).min)).sum(-1)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """While open, the policy is its reference: adapters off, or the incoming adapter's frozen copy on.

        Raises ValueError for a fully trained policy, whose reference is a copy (`frozen_copy`) or cached numbers.
        """
        if self.adapted is None:
            raise ValueError("a fully trained policy has no reference inside: take frozen_copy() before training")
        if "reference" in self.adapted.peft_config:
            training = {name: p.requires_grad for name, p in self.model.named_parameters()}
            self.adapted.set_adapter("reference")
            try:
                yield
            finally:
                self.adapted.set_adapter("default")
                for name, parameter in self.model.named_parameters():
                    parameter.requires_grad_(training[name])
        else:
            with self.adapted.disable_adapter():
                yield

    def frozen_copy(self) -> "Policy":
        """A copy that is never trained, for use as a reference."""
        twin = Policy(copy.deepcopy(self.model), tries=self.tries)
        return twin.requires_grad_(False).eval()

    @contextmanager
    def plain(self) -> Iterator[PreTrainedModel]:
        """The transformers model with its ordinary attention, for `generate`."""
        with plain_attention(self.model) as model:
            yield model


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint. Raises InputError where there is none."""
    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(_missing(path, "tokenizer", error)) from error


def _missing(path: str, what: str, error: Exception) -> str:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if not Path(path).exists() and "/" in path and not path.startswith((".", "/")):
        return f"model.path: {path!r} is no folder here, and the hub did not answer: give a local folder"
    return f"model.path: no {what} can be loaded from {path!r}: {reason}"


def load_policy(
    options: ModelOptions,
    *,
    device: torch.device | str = "cpu",
    precision: Literal["float32", "bf16"] = "float32",
    trainable: bool = True,
    seed: int = 0,
) -> Policy:
    """The policy of a checkpoint or of an artifact, with new or continued LoRA adapters where the options ask.

    Trained weights are float32; frozen ones are float32 or bfloat16 as `precision` says, or 4-bit NF4.
    """
    model, adapted, tries = load_model(options, device, precision, trainable, seed)
    return Policy(model, adapted, tries)


def load_model(
    options: ModelOptions,
    device: torch.device | str,
    precision: str,
    trainable: bool,
    seed: int,
) -> tuple[PreTrainedModel, PeftModel | None, bool]:
    """(model, its PEFT wrapper or None, whether tries hold on it) of a checkpoint.

    Always the causal class: an adapter's names then fit whatever head its model has.
    """
    frozen = options.lora is not None or options.load_in_4bit or not trainable
    dtype = torch.bfloat16 if frozen and precision == "bf16" else torch.float32
    place = torch.device(device)
    if not is_adapter(options.path):
        model, tries = _open(options.path, dtype, place, options.load_in_4bit)
        adapted = None
    elif options.adapter == "continue":
        model, tries = _open(base_of(options.path), dtype, place, options.load_in_4bit)
        adapted = PeftModel.from_pretrained(model, options.path, is_trainable=trainable)
        adapted.load_adapter(options.path, adapter_name="reference", is_trainable=False)
        adapted.set_adapter("default")
        if options.lora is not None:
            raise InputError("model.adapter: continue trains the incoming adapter on; remove model.lora, or use merge")
    else:
        model, tries = _open_merged(options, dtype, place)
        adapted = None
    if options.lora is not None and trainable:
        adapted = _add_lora(model, options.lora, seed)
        model = adapted.get_base_model()
    elif adapted is None and frozen:
        model.requires_grad_(False)
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.is_floating_point():
            parameter.data = parameter.data.float()
    return model, adapted, tries


def is_adapter(path: str) -> bool:
    """Whether a folder holds a LoRA adapter rather than whole weights."""
    return (Path(path) / "adapter_config.json").is_file()


def _open(path: str, dtype: torch.dtype, device: torch.device, four_bit: bool) -> Any:
    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(_missing(path, "model configuration", error)) from error
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
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, **arguments)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(_missing(path, "model", error)) from error
    for module in model.modules() if four_bit else ():
        # On some CPUs a pass without gradient would re-round the 4-bit scales to bfloat16, in place and for good.
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
    return (model if four_bit else model.to(device)).eval(), reason is None


def _open_merged(options: ModelOptions, dtype: torch.dtype, device: torch.device) -> tuple[Any, bool]:
    """The incoming adapter merged into its base: in memory, or on disk where a new adapter will need that base."""
    if options.lora is not None or options.load_in_4bit:
        return _open(str(merged_folder(options.path)), dtype, device, options.load_in_4bit)
    model, tries = _open(base_of(options.path), dtype, device, False)
    merged: Any = PeftModel.from_pretrained(model, options.path).merge_and_unload()
    return merged.requires_grad_(True), tries


def merged_folder(path: str) -> Path:
    """`.merged/` in an adapter's folder: adapter and base as whole weights in the base's own precision, made once.

    Merging is done in float32, into weights that were never 4-bit (arXiv:2305.14314, appendix B).
    """
    folder = Path(path).absolute() / MERGED
    if not folder.is_dir():
        base = AutoModelForCausalLM.from_pretrained(base_of(path), dtype=torch.float32)
        kept = AutoConfig.from_pretrained(base_of(path)).dtype or torch.float32
        merged: Any = PeftModel.from_pretrained(base, path).merge_and_unload()
        with tempfile.TemporaryDirectory(dir=path) as unfinished:
            merged.to(kept).save_pretrained(unfinished)
            shutil.copytree(unfinished, folder)
    return folder


def base_of(path: str) -> str:
    """The folder whose whole weights an artifact stands on: its own, or its adapter's base."""
    if not is_adapter(path):
        return path
    return str(PeftConfig.from_pretrained(path).base_model_name_or_path)


def _add_lora(model: PreTrainedModel, lora: LoraOptions, seed: int) -> PeftModel:
    """New adapters, drawn from the seed alone."""
    config = LoraConfig(r=lora.r, lora_alpha=lora.scale, lora_dropout=lora.dropout, target_modules=lora.target_modules)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(model, config)


def save_policy(policy: Policy, format: ChatFormat, directory: Path) -> None:
    """Write a folder that plain `from_pretrained` loads: whole weights, or the adapter where there is one."""
    save_model(policy.model, policy.adapted, directory)
    format.save(directory, policy.model)


def save_model(model: PreTrainedModel, adapted: PeftModel | None, directory: Path) -> None:
    """The weights of a model, or its trained adapter, as safetensors."""
    if adapted is not None:
        adapted.save_pretrained(directory, selected_adapters=["default"])
    else:
        model.save_pretrained(directory)
