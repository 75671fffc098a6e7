"""E9 where nothing has to be generalised: policies are judged on the openings that they were trained on.

    python benchmarks/evidence/frontier_own.py --model DIR --stories FILE [--seeds 0 1 2] [--out DIR] [--quick]

As `frontier.py`, with many samples of a few openings: PPO on gold, and DPO on rankings of fresh samples that are drawn
by gold (Plackett and Luce's model, `dpo.loss: plackett_luce`). What is missing to the frontier then is what the
optimiser and the size of the policy leave, not what openings unseen in training cost.
"""

from pathlib import Path
from typing import Any

import numpy as np
from chain import options_of, publish, run_chain, write_rows
from frontier import (
    ARGUMENTS,
    EOS,
    GOLD,
    SHARPNESS,
    TOKENS,
    Chain,
    as_prompts,
    evaluation,
    judged,
    on_pairs,
    on_rewards,
    openings,
)
from frontier_report import picture, tables
from pool import said, sampled, scores

PART = 2_400
"""Openings that are continued at once."""
DPO_BETAS = (0.1, 0.05, 0.04, 0.03)
"""With equal β, DPO ends nearer to the reference than PPO."""


def main() -> None:
    options = options_of(
        "frontier_own", __doc__, **{**ARGUMENTS, "betas": {**ARGUMENTS["betas"], "default": [0.1, 0.05]}}
    )
    model, stories = str(options.given.model), Path(options.given.stories)
    size = {**sizes(options.quick), "betas": options.given.betas, "dpo_betas": DPO_BETAS}
    found = [one_seed(options.out / str(seed), model, stories, size, seed) for seed in options.seeds]
    publish("frontier_own", options, size, found, tables, picture)


def sizes(quick: bool) -> dict[str, Any]:
    """Openings and reference samples of each, rankings and responses in one; PPO's updates, their batch, how much of
    it is one opening's, and the learning rate; samples to judge by."""
    ours = {"drawn": 1, "learning_rate": 4e-4}
    if quick:
        few = {"prompts": 4, "samples": 64, "rankings": 32, "ranked": 4, "updates": 2, "batch": 16, "judged": 4}
        return few | ours
    many = {"prompts": 24, "samples": 4096, "rankings": 16_000, "ranked": 8, "updates": 200, "batch": 512}
    return many | ours | {"judged": 64}


def one_seed(folder: Path, model: str, stories: Path, size: dict[str, Any], seed: int) -> dict[str, Any]:
    """Frontier, policies and best-of-n with one seed."""
    own, _ = openings(stories, seed, size["prompts"])
    asked, rankings = write_rows(folder / "data/openings.jsonl", as_prompts(own)), folder / "data/rankings.jsonl"
    files = {"train": asked, "held_out": asked, "pairs": str(rankings)}
    if not rankings.is_file():
        write_rows(rankings, ranked(Path(model), own, size, seed))
    policies = {**ppo(model, files, size), **dpo(model, files, size)}
    chain = {**policies, "evaluate": evaluation(model, list(policies), files, size)}
    runs = run_chain(folder, "frontier_own", seed, chain)
    return judged(runs, list(policies), model, own, size, seed)


def ranked(model: Path, own: list[str], size: dict[str, Any], seed: int) -> list[dict[str, Any]]:
    """Rankings of fresh samples of each opening in turn: gold times SHARPNESS plus Gumbel noise, the largest first."""
    random, rows = np.random.default_rng(seed), list[dict[str, Any]]()
    for start in range(0, size["rankings"], PART):
        asked = [own[n % len(own)] for n in range(start, min(start + PART, size["rankings"]))]
        completions = sampled(model, asked, size["ranked"], seed + 1000 + start, TOKENS, eos=EOS)
        worth = SHARPNESS * scores(GOLD, completions) + random.gumbel(size=len(completions))
        ranks = 1 + (-worth.reshape(len(asked), -1)).argsort(1).argsort(1)
        for number, (opening, rank) in enumerate(zip(asked, ranks, strict=True)):
            prompt = [{"role": "user", "content": opening}]
            drawn = completions[number * size["ranked"] : (number + 1) * size["ranked"]]
            responses = [[said(one)] for one in drawn]
            rows.append({"prompt": prompt, "responses": responses, "ranks": rank.tolist()})
    return rows


def ppo(model: str, files: dict[str, str], size: dict[str, Any]) -> Chain:
    """PPO on gold for each β."""
    train = {"learning_rate": size["learning_rate"], "batch_size": size["batch"], "steps": size["updates"]}
    gold = {name: stage for name, stage in on_rewards(model, files, size).items() if name.startswith("ppo-gold")}
    own = {"train": train, "ppo_epochs": 1, "samples": size["drawn"]}
    return {name: stage | own for name, stage in gold.items()}


def dpo(model: str, files: dict[str, str], size: dict[str, Any]) -> Chain:
    """DPO on the rankings for each β."""
    data = {"path": files["pairs"], "validation": 0, "max_length": 128}  # a share of it would be whole openings
    train = {"learning_rate": 4e-4, "batch_size": 64, "epochs": 1}
    changes = {"data": data, "train": train, "loss": "plackett_luce"}
    return {
        name: stage | changes for name, stage in on_pairs(model, files, size | {"betas": size["dpo_betas"]}).items()
    }


if __name__ == "__main__":
    main()
