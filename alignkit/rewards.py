"""Makes the reward that a recipe names: a callable from completions to scores. It does not know who wrote them."""

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from alignkit.chat import ChatFormat
from alignkit.config import InputError
from alignkit.models import load_tokenizer
from alignkit.options.reward_source import RewardSource
from alignkit.options.shared import ModelOptions
from alignkit.packing import pack
from alignkit.records import Completion
from alignkit.role import Role
from alignkit.scorer import HEAD_FILE, Scorer, load_scorer, scorer_on
from reward_models import world
from reward_models.combined import combined
from reward_models.functions import Reward, from_function, scaled
from reward_models.learned import learned
from reward_models.lexicon import lexicon, read_lexicon
from reward_models.rules import RULES, length, pattern, repetition


def build_reward(
    source: RewardSource,
    *,
    device: torch.device | str = "cpu",
    precision: Literal["float32", "bf16"] = "float32",
    token_budget: int = 8192,
    allow_code: bool = False,
    base: Role | None = None,
) -> Reward:
    """The reward of `source`, scaled and clipped as it says. Raises InputError where it cannot be made.

    With `base`, learned rewards are adapters on that role's base; without, models of their own.
    """
    if source.kind == "combined":
        rewards = {
            name: build_reward(
                one, device=device, precision=precision, token_budget=token_budget, allow_code=allow_code, base=base
            )
            for name, one in source.of.items()
        }
        reward = combined(rewards, source.combine, source.deviations)
    elif source.kind == "learned":
        reward = learned_reward(str(source.path), source.normalised, device, precision, token_budget, base)
    elif source.kind == "world":
        reward = world.reward
    elif source.kind == "rules":
        reward = _rule(source)
    elif source.kind == "lexicon":
        reward = lexicon(None if source.path is None else read_lexicon(source.path))
    else:
        reward = from_function(_function(str(source.path), allow_code), source.conversational)
    return scaled(reward, source.scale, source.clip)


def learned_reward(
    path: str,
    normalised: bool,
    device: torch.device | str,
    precision: Literal["float32", "bf16"],
    token_budget: int,
    base: Role | None = None,
) -> Reward:
    """The reward model in an artifact, or its adapter on another role's base. Completions are rendered and tokenized
    its own way, not the policy's; what its template leaves out of one is said once, and counted."""
    if not (Path(path) / HEAD_FILE).is_file():
        raise InputError(f"reward.path: {path!r} holds no {HEAD_FILE}; name the artifact of a reward stage")
    if base is None:
        scorer = load_scorer(ModelOptions(path=path), device=device, precision=precision, trainable=False)
    else:
        taken = len(base.adapted.peft_config) if base.adapted else 0
        scorer = scorer_on(base, f"reward{taken}", path, trainable=False)
    format = ChatFormat.load(load_tokenizer(path), on_unrendered="warn")
    return learned(scores_of(scorer, format, token_budget, normalised))


def scores_of(
    scorer: Scorer, format: ChatFormat, token_budget: int, normalised: bool = True
) -> Callable[[list[Completion]], torch.Tensor]:
    """completions -> [N] float32 scores on the CPU, each read at its end-of-turn token, whatever they are packed with.

    A completion that was cut off is scored as if it had ended there.
    """

    def score(completions: list[Completion]) -> torch.Tensor:
        result = torch.zeros(len(completions))
        sequences = format.completions([(c.prompt, (c.response,), c.tools) for c in completions])
        device = scorer.mean.device
        with torch.no_grad():
            for batch in pack(sequences, token_budget):
                raw = scorer(batch.to(device), at="last")
                result[batch.owners] = (scorer.normalise(raw) if normalised else raw).float().cpu()
        return result

    return score


def _rule(source: RewardSource) -> Reward:
    if source.pattern is not None:
        return pattern(source.pattern)
    if source.length is not None:
        return repetition(source.length) if source.rule == "repetition" else length(source.length)
    assert source.rule is not None, "RewardSource checks it"
    return RULES[source.rule](source.answer_column)


def _function(path: str, allow_code: bool) -> Callable[..., Sequence[float | None]]:
    """The Python function that `package.module:function` names."""
    if not allow_code:
        raise InputError(f"reward.path: {path!r} is code; add --allow-code to let this recipe run it")
    module, _, name = path.partition(":")
    try:
        function: Any = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise InputError(f"reward.path: {path!r} cannot be imported: {error}") from error
    if not callable(function):
        raise InputError(f"reward.path: {path!r} is not a function")
    return function
