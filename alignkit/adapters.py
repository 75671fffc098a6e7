"""LoRA adapters of a checkpoint: new ones, merged ones, several on one base. Knows no stage and no data.

peft is imported by what first needs it: with bitsandbytes it is 60 MB and a second, which a run without adapters
is spared.
"""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from alignkit.config import InputError
from alignkit.lineage import base_of, is_adapter
from alignkit.options.shared import LoraOptions
from alignkit.role import Role
from alignkit.together import together

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

MERGED = ".merged"


def merged_folder(path: str) -> Path:
    """`.merged/` in an adapter's folder: adapter and base as whole weights in the base's own precision, made once, and
    anew where either has changed since. All ranks call it, and the first one works.

    Merging is done in float32, into weights that were never 4-bit (arXiv:2305.14314, appendix B).
    """
    folder, base = Path(path).absolute() / MERGED, base_of(path)

    def make() -> None:
        if not folder.is_dir() or _changed(base, path) > folder.stat().st_mtime:
            _merge(base, path, folder)

    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        make()
    else:
        together(make if torch.distributed.get_rank() == 0 else lambda: None)
    return folder


def _changed(*folders: str) -> float:
    """When weights or a configuration in these folders were last changed; models on a hub do not count."""
    kinds = ("*.safetensors", "*.bin", "*config.json")
    files = (file for folder in folders for kind in kinds for file in Path(folder).glob(kind))
    return max((file.stat().st_mtime for file in files), default=0.0)


def _merge(base: str, path: str, folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    make_room(model, path)
    kept = AutoConfig.from_pretrained(base).dtype or torch.float32
    merged: Any = opened(model, path).merge_and_unload()
    with tempfile.TemporaryDirectory(prefix=f"{MERGED}.", dir=path) as unfinished:  # hidden, and not taken for whole
        merged.to(kept).save_pretrained(Path(unfinished) / MERGED)
        shutil.rmtree(folder, ignore_errors=True)
        (Path(unfinished) / MERGED).rename(folder)


def opened(model: PreTrainedModel, path: str, *, trainable: bool = False) -> "PeftModel":
    """The adapter in a folder, on the base `model`."""
    from peft import PeftModel  # noqa: PLC0415

    return PeftModel.from_pretrained(model, path, is_trainable=trainable)


def make_room(model: PreTrainedModel, adapter: str) -> None:
    """Rows for the tokens that an adapter brings."""
    tokens = _vocabulary(adapter)
    if model.get_input_embeddings().weight.shape[0] < tokens:
        model.resize_token_embeddings(tokens, mean_resizing=False)


def _vocabulary(adapter: str) -> int:
    """Tokens of the tokenizer that lies with an adapter; 0 without one."""
    return len(AutoTokenizer.from_pretrained(adapter)) if (Path(adapter) / "tokenizer_config.json").is_file() else 0


def new_adapter(model: PreTrainedModel, lora: LoraOptions, seed: int, new_ids: Sequence[int]) -> "PeftModel":
    """New adapters, drawn from the seed alone; the rows of new tokens are trained whole and stored with them."""
    from peft import get_peft_model  # noqa: PLC0415
    from peft.tuners.lora import LoraLayer  # noqa: PLC0415

    if new_ids and getattr(model.get_output_embeddings(), "bias", None) is not None:
        raise InputError("model.lora: peft cannot add tokens to a head with a bias; train this stage without lora")
    tables = {model.get_input_embeddings(), model.get_output_embeddings()}
    names = [name for name, module in model.named_modules() if module in tables]
    config = _lora_config(lora)
    config.trainable_token_indices = {name: list(new_ids) for name in names} if new_ids else None
    head = model.get_output_embeddings()
    tied = head is not None and head.weight is model.get_input_embeddings().weight
    chosen = f"model.lora.target_modules: {lora.target_modules}"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            adapted = get_peft_model(model, config)
        except ValueError as error:  # peft's, for targets that match nothing
            linear = [(name, part) for name, part in model.named_modules() if isinstance(part, nn.Linear)]
            layers = {name.rpartition(".")[2] for name, part in linear if part not in tables}
            raise InputError(
                f"{chosen} fits no module; the linear layers are called {', '.join(sorted(layers))}: {error}"
            ) from error
        except TypeError as error:  # peft's, for a table whose new rows are trained
            raise InputError(f"{chosen} has a table of tokens in it, which gets new tokens; leave it out") from error
    if tied and any(isinstance(part, LoraLayer) and part.get_base_layer() in tables for part in adapted.modules()):
        raise InputError(f"{chosen} has the head or the embeddings in it, which are one here: it cannot be merged")
    return adapted


def _lora_config(lora: LoraOptions) -> "LoraConfig":
    from peft import LoraConfig  # noqa: PLC0415

    return LoraConfig(r=lora.r, lora_alpha=lora.scale, lora_dropout=lora.dropout, target_modules=lora.target_modules)


def add_adapter(role: Role, name: str, source: str | LoraOptions, *, trainable: bool, seed: int) -> None:
    """One more adapter on a role's base, in float32: an artifact's, or a new one of the given shape.

    Raises InputError where the role has no adapters, or the artifact none that stands on the same base.
    """
    if role.adapted is None:
        raise InputError("roles: adapters share a frozen base; give model.lora, or use roles: separate")
    base = str(role.model.name_or_path)
    if isinstance(source, LoraOptions):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            role.adapted.add_adapter(name, _lora_config(source))
    else:
        if not is_adapter(source):
            raise InputError(f"roles: {source!r} holds whole weights, no adapter; train it with model.lora")
        if Path(base_of(source)).resolve() != Path(base).resolve():
            raise InputError(f"roles: the adapter {source!r} stands on {base_of(source)!r}, the policy on {base!r}")
        if _vocabulary(source) > role.model.get_input_embeddings().weight.shape[0]:
            raise InputError(f"roles: {source!r} has tokens that the policy's base lacks; use roles: separate")
        role.adapted.load_adapter(source, adapter_name=name, is_trainable=trainable)
    for parameter_name, parameter in role.model.named_parameters():
        if name in parameter_name.split("."):
            parameter.requires_grad_(trainable).data = parameter.data.float()
