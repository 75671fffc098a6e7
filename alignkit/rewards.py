"""Makes the reward that a recipe names: a callable from completions to scores. It does not know who wrote them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from alignkit.averaging import averaged_scorer
from alignkit.chat import ChatFormat
from alignkit.code import named_function
from alignkit.config import InputError
from alignkit.guidelines import read_judge
from alignkit.judging import asked, patience
from alignkit.models import load_tokenizer
from alignkit.options.reward_source import RewardSource
from alignkit.options.shared import ModelOptions
from alignkit.packing import pack
from alignkit.records import Completion
from alignkit.role import Role
from alignkit.scorer import HEAD_FILE, Scorer, load_scorer, scorer_on
from reward_models import world
from reward_models.combined import combined
from reward_models.functions import from_function, scaled
from reward_models.judge import has_score, judge
from reward_models.learned import learned
from reward_models.lexicon import lexicon, read_lexicon
from reward_models.refusal import refusal
from reward_models.remote import remote
from reward_models.rules import RULES, length, pattern, repetition
from reward_models.running import Running, normalised
from reward_models.scores import Reward
from reward_models.verifiers import json_schema, mathematics


def build_reward(
    source: RewardSource,
    *,
    device: torch.device | str = "cpu",
    precision: Literal["float32", "bf16"] = "float32",
    token_budget: int = 8192,
    allow_code: bool = False,
    running: Running | None = None,
    name: str = "reward",
    base: Role | None = None,
) -> Reward:
    """The reward of `source`, normalised, scaled and clipped as it says. Raises InputError where it cannot be made.

    `running` is where it keeps, under `name`, what `normalise: running` has to remember. With `base`, learned rewards
    are adapters on that role's base; without, models of their own.
    """
    running, skip = running or Running(), source.on_failure == "skip"
    if source.combine == "weights":
        members = list(source.of.values())
        paths = [str(one.path) for one in members]
        reward = learned_reward(paths, members[0].normalised, device, precision, token_budget)
    elif source.kind == "combined":
        shared: dict[str, Any] = {"device": device, "precision": precision, "token_budget": token_budget}
        shared |= {"allow_code": allow_code, "running": running, "base": base}
        rewards = {part: build_reward(one, **shared, name=f"{name}/{part}") for part, one in source.of.items()}
        reward = combined(rewards, source.combine, source.deviations)
    elif source.kind == "learned":
        reward = learned_reward([str(source.path)], source.normalised, device, precision, token_budget, skip, base)
    elif source.kind == "world":
        reward = world.reward
    elif source.kind == "rules":
        reward = _rule(source)
    elif source.kind == "lexicon":
        reward = lexicon(None if source.path is None else read_lexicon(source.path))
    elif source.kind == "remote":
        reward = remote(str(source.url), skip=skip, **patience(source))
    elif source.kind == "judge":
        guidelines, examples = read_judge(str(source.guidelines), "reward.guidelines", source.points)
        held: dict[str, Any] = {"device": device, "precision": precision, "token_budget": token_budget}
        ask = asked(source, "reward", has_score(source.points), **held)
        reward = judge(ask, guidelines, source.points, examples=examples, skip=skip)
    else:
        function = named_function(str(source.path), allow_code, "reward.path")
        reward = from_function(function, source.conversational, skip=skip, timeout=source.timeout)
    if source.normalise == "running":
        reward = normalised(reward, running, name)
    return scaled(reward, source.scale, source.clip)


def learned_reward(
    paths: Sequence[str],
    normalised: bool,
    device: torch.device | str,
    precision: Literal["float32", "bf16"],
    token_budget: int,
    skip: bool = False,
    base: Role | None = None,
) -> Reward:
    """The reward model in an artifact, as a model or as an adapter on another role's base; or the mean of several by
    their weights. Completions are rendered and tokenized its own way, not the policy's; what its template leaves out
    of one is said once, and counted."""
    for path in paths:
        if not (Path(path) / HEAD_FILE).is_file():
            raise InputError(f"reward.path: {path!r} holds no {HEAD_FILE}; name the artifact of a reward stage")
    if len(paths) > 1:
        scorer = averaged_scorer(paths, normalised, device, precision)
    elif base is None:
        scorer = load_scorer(ModelOptions(path=paths[0]), device=device, precision=precision, trainable=False)
    else:
        taken = len(base.adapted.peft_config) if base.adapted else 0
        scorer = scorer_on(base, f"reward{taken}", paths[0], trainable=False)
    format = ChatFormat.load(load_tokenizer(paths[0]), on_unrendered="warn")
    return learned(scores_of(scorer, format, token_budget, normalised), skip=skip)


def scores_of(
    scorer: Scorer, format: ChatFormat, token_budget: int, normalised: bool = True
) -> Callable[[list[Completion]], torch.Tensor]:
    """completions -> [N] float32 scores on the CPU, each read at its end-of-turn token, whatever they are packed with.

    A completion that was cut off is scored as if it had ended there.
    """

    def score(completions: list[Completion]) -> torch.Tensor:
        result = torch.zeros(len(completions))
        sequences = format.completions([(c.context, (c.response,), c.tools) for c in completions])
        device = scorer.mean.device
        with torch.no_grad():
            for batch in pack(sequences, token_budget):
                raw = scorer(batch.to(device), at="last")
                result[batch.owners] = (scorer.normalise(raw) if normalised else raw).float().cpu()
        return result

    return score


def _rule(source: RewardSource) -> Reward:
    if source.pattern is not None:
        return pattern(source.pattern, timeout=source.timeout or 1.0)
    if source.length is not None:
        return repetition(source.length) if source.rule == "repetition" else length(source.length)
    if source.json_schema is not None:
        return json_schema(source.json_schema)
    if source.rule == "refusal":
        return refusal(source.wanted_column)
    if source.rule == "math":
        return mathematics(source.answer_column, source.timeout or 5.0)
    assert source.rule is not None, "RewardSource checks it"
    return RULES[source.rule](source.answer_column)
