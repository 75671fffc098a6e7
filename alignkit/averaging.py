"""Several reward models as one, by the mean of their weights. Knows no recipe and no completion."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from alignkit.config import InputError
from alignkit.models import load_tokenizer
from alignkit.options.shared import ModelOptions
from alignkit.scorer import Scorer, load_scorer


def averaged_scorer(
    paths: Sequence[str],
    normalised: bool,
    device: torch.device | str = "cpu",
    precision: Literal["float32", "bf16"] = "float32",
) -> Scorer:
    """The frozen scorer whose every weight is the mean of the artifacts' (WARM, Ramé et al. 2024, arXiv:2401.12187).

    It needs the memory and the time of one, and is meant for members fine-tuned from one checkpoint. With `normalised`
    each head takes in its own mean and deviation first, so that all weigh alike. The mean is taken in float32 on the
    CPU. Raises InputError where architectures, tokens or chat templates differ.
    """
    mean: dict[str, Tensor] = {}
    for path in paths:
        _check_alike(path, paths[0])
        member = load_scorer(ModelOptions(path=path), trainable=False)
        if normalised:
            member.fold_normalisation()
        state = member.state_dict()
        if mean and {n: x.shape for n, x in state.items()} != {n: x.shape for n, x in mean.items()}:
            raise InputError(f"reward.of: {path!r} is of another architecture than {paths[0]!r}; use combine: mean")
        for name, value in state.items():
            mean[name] = mean.get(name, torch.zeros_like(value)) + value / len(paths)
    result = load_scorer(ModelOptions(path=paths[0]), device=device, precision=precision, trainable=False)
    result.load_state_dict(mean)
    return result


def _check_alike(path: str, first: str) -> None:
    one, other = load_tokenizer(path), load_tokenizer(first)
    if one.get_vocab() != other.get_vocab() or one.chat_template != other.chat_template:
        raise InputError(f"reward.of: {path!r} has other tokens or another chat template than {first!r}")
