"""Answers sampled from an artifact, comparisons and best-of-n made of them. It knows no experiment and no training."""

import math
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkit import ChatFormat, ModelOptions, load_policy, load_tokenizer, rollout
from alignkit.config import build
from alignkit.evaluation.statistics import best_of_n_bound
from alignkit.options.reward_source import RewardSource
from alignkit.records import Completion, Message, Prompt
from alignkit.rewards import build_reward

Floats = NDArray[np.float64]


def sampled(
    model: Path, prompts: Sequence[str], samples: int, seed: int, tokens: int, least: int = 0, eos: str | None = None
) -> list[Completion]:
    """`samples` answers of a model to each prompt, those of one prompt side by side, of `least` to `tokens` tokens.

    `eos`: the token that ends plain text, for a checkpoint that no stage has made.
    """
    format = ChatFormat.load(load_tokenizer(str(model)), "none" if eos else None, eos)
    policy = load_policy(ModelOptions(path=str(model)), trainable=False, format=format).eval()
    asked = [Prompt(messages=(Message(role="user", content=prompt),)) for prompt in prompts]
    return rollout(
        policy,
        format,
        asked,
        seed=seed,
        update=0,
        samples=samples,
        max_new_tokens=tokens,
        min_new_tokens=least,
        token_budget=2**15,
    )


def scores(source: dict[str, Any], completions: list[Completion]) -> Floats:
    """[N] what a recipe's reward gives to completions."""
    return np.array(build_reward(build(RewardSource, source, "reward"))(completions).total)


def said(completion: Completion) -> dict[str, Any]:
    """The answer as a turn of a data file."""
    return {"role": "assistant", "content": completion.response.content, "finished": completion.finished}


def compared(completions: list[Completion], gold: Floats, seed: int) -> list[dict[str, Any]]:
    """Neighbours of one prompt as comparisons, the label drawn by Bradley and Terry's model of their gold scores."""
    random, rows = Random(seed), list[dict[str, Any]]()
    for n in range(0, len(completions) - 1, 2):
        first = random.random() < 1 / (1 + math.exp(gold[n + 1] - gold[n]))
        pair = completions[n : n + 2]
        rows.append(
            {
                "prompt": [{"role": "user", "content": completions[n].prompt[-1].content}],
                "responses": [[said(one)] for one in pair],
                "ranks": [1, 2] if first else [2, 1],
            }
        )
    return rows


def best_of(proxy: Floats, values: Floats, n: int) -> float:
    """Mean of `values` [P, S] at the best by `proxy` [P, S] of n drawn out of the S samples of a prompt, exactly.

    The sample of rank k from below is the best of n with probability C(k-1, n-1) / C(S, n).
    """
    ordered = np.take_along_axis(values, proxy.argsort(axis=1), axis=1).mean(0)
    size = len(ordered)
    weights = [math.comb(rank, n - 1) / math.comb(size, n) for rank in range(size)]
    return float(ordered @ np.array(weights))


def best_of_n(proxy: Floats, values: Floats, ns: Sequence[int]) -> list[tuple[float, float]]:
    """(√ of the bound on best-of-n's KL, mean of `values` at the proxy's best of n) for each n."""
    return [(math.sqrt(best_of_n_bound(n)), best_of(proxy, values, n)) for n in ns]


def fitted(points: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Least squares of d(α - βd) on (d, value) points, and the share R² of the variance that it explains."""
    d, value = np.array(points).T
    terms = np.stack([d, -(d**2)], 1)
    (alpha, beta), *_ = np.linalg.lstsq(terms, value, rcond=None)
    left = value - terms @ np.array([alpha, beta])
    return {
        "alpha": float(alpha),
        "beta": float(beta),
        "r2": float(1 - (left**2).sum() / ((value - value.mean()) ** 2).sum()),
    }
