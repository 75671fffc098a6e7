"""Checkpoints of a training in progress, as safetensors and JSON; it knows no stage and unpickles nothing.

A checkpoint holds what changes: trained parameters, optimizer state, and a small JSON of positions and numbers.
Frozen weights come from where the stage loaded them.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer


def trained_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Name -> parameter, for those that require a gradient; tied ones once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: Optimizer,
    state: Mapping[str, Any],
    tensors: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> None:
    """Writes a checkpoint into an existing folder. `state` is plain JSON; `tensors` are further files of tensors.

    Raises OSError with what to do where the disk is full or the folder cannot be written.
    """
    packed = optimizer.state_dict()
    arrays: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for index, values in packed["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                arrays[f"{index}.{name}"] = value
            else:
                numbers.setdefault(str(index), {})[name] = value
    record = {"state": dict(state), "optimizer": {"groups": packed["param_groups"], "state": numbers}}
    try:
        _save(folder / "parameters.safetensors", trained_parameters(model))
        _save(folder / "optimizer.safetensors", arrays)
        for name, values in (tensors or {}).items():
            _save(folder / f"{name}.safetensors", values)
        (folder / "state.json").write_text(json.dumps(record), encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"cannot write the checkpoint {folder}: {error}. Earlier checkpoints stand: make room and run again"
        ) from error


def load_checkpoint(
    folder: Path, model: nn.Module, optimizer: Optimizer
) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """Puts a checkpoint back into model and optimizer, bit for bit; returns its `state` and its further `tensors`.

    Raises ValueError where the model's trained parameters are not those of the checkpoint.
    """
    record = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    copy_parameters(model, load_file(folder / "parameters.safetensors"), str(folder))
    state: dict[int, dict[str, Any]] = {int(k): dict(v) for k, v in record["optimizer"]["state"].items()}
    for key, tensor in load_file(folder / "optimizer.safetensors").items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": record["optimizer"]["groups"]})
    own = ("parameters", "optimizer")
    others = {f.stem: load_file(f) for f in sorted(folder.glob("*.safetensors")) if f.stem not in own}
    return record["state"], others


def copy_parameters(model: nn.Module, values: Mapping[str, Tensor], source: str) -> None:
    """Copies named tensors into the model's trained parameters; `source` is named in the ValueError of a mismatch."""
    copy_tensors(trained_parameters(model), values, source)


@torch.no_grad()
def copy_tensors(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor], source: str) -> None:
    """Copies `values` into the `tensors` of the same names; `source` is named in the ValueError of a mismatch."""
    wrong = sorted(tensors.keys() ^ values.keys())
    wrong += [n for n, t in tensors.items() if n in values and values[n].shape != t.shape]
    if wrong:
        raise ValueError(f"{source} belongs to another model: it differs in {', '.join(wrong[:3])}")
    for name, tensor in tensors.items():
        tensor.copy_(values[name])


def _save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
