"""E9: reward against KL on a real pretrained checkpoint, under the best that any policy can do.

    python benchmarks/evidence/frontier.py --model DIR --stories FILE [--seeds 0] [--out DIR] [--quick]

A story is continued so that it sounds positive; the gold reward is the built-in lexicon. PPO and RLOO on gold, PPO on
a reward model, DPO on the same comparisons, each for several β, stand against the frontier of the tilted reference
π_ref·exp(r/β), which many reference samples estimate.
"""

import json
from pathlib import Path
from random import Random
from typing import Any

from chain import Options, options_of, publish, row_of, run_chain, seconds_of, write_rows
from frontier_report import Frontier, picture, tables
from pool import best_of_n, compared, sampled, scores

from alignkit.report.read import Stage

EOS = "</s>"
GOLD = {"kind": "lexicon"}
TOKENS = 16  # of a continuation at most
WORDS = 24  # of an opening
SHARPNESS = 8.0  # labels are drawn by 8 times the gold reward, so DPO's β is 8 times that of the others
NS = (2, 4, 8, 16, 32, 64)
ARGUMENTS = {
    "model": {"default": "models/stories260k", "help": "a folder with karpathy's stories260K as a transformers model"},
    "betas": {"type": float, "nargs": "+", "default": [0.2, 0.1, 0.05], "help": "strengths of the KL"},
    "stories": {"default": "data/tinystories.json", "help": "a JSON list of stories"},
}
Chain = dict[str, dict[str, Any]]


def main() -> None:
    options = options_of("frontier", __doc__, **ARGUMENTS)
    found = [one_seed(options, seed) for seed in options.seeds]
    publish("frontier", options, sizes(options.quick), found, tables, picture)


def sizes(quick: bool) -> dict[str, Any]:
    """Held-out openings and samples of each, comparisons, updates and their batch, samples to judge a policy by."""
    if quick:
        return {"prompts": 4, "samples": 64, "pairs": 32, "updates": 2, "batch": 16, "judged": 4}
    return {
        "prompts": 24,
        "samples": 1024,
        "pairs": 2000,
        "updates": 60,
        "batch": 128,
        "judged": 64,
    }


def one_seed(options: Options, seed: int) -> dict[str, Any]:
    """Frontier, policies and best-of-n with one seed."""
    folder, model = options.out / str(seed), str(options.given.model)
    size = {**sizes(options.quick), "betas": options.given.betas}
    held_out, train = openings(Path(options.given.stories), seed, size["prompts"])
    pairs = folder / "data/comparisons.jsonl"
    if not pairs.is_file():
        asked = [train[n % len(train)] for n in range(size["pairs"])]
        completions = sampled(Path(model), asked, 2, seed + 1000, TOKENS, eos=EOS)
        write_rows(pairs, compared(completions, SHARPNESS * scores(GOLD, completions), seed))
    files = {
        "train": write_rows(folder / "data/train.jsonl", as_prompts(train)),
        "held_out": write_rows(folder / "data/held_out.jsonl", as_prompts(held_out)),
        "pairs": str(pairs),
    }
    policies = {**on_rewards(model, files, size), **on_pairs(model, files, size)}
    chain = {**proxy(model, files), **policies, "evaluate": evaluation(model, list(policies), files, size)}
    runs = run_chain(folder, "frontier", seed, chain)
    found = judged(runs, list(policies), model, held_out, size, seed)
    return found | {"reward_accuracy": runs["reward"].record.metrics.get("held_out/accuracy")}


def judged(
    runs: dict[str, Stage], names: list[str], model: str, asked: list[str], size: dict[str, Any], seed: int
) -> dict[str, Any]:
    """The policies that `runs["evaluate"]` judged on the openings `asked`, beside their frontier and best-of-n."""
    gold = scores(GOLD, sampled(Path(model), asked, size["samples"], seed, TOKENS, eos=EOS))
    gold = gold.reshape(size["prompts"], size["samples"])
    frontier = Frontier.of(gold, seed)
    points = {name: {metric: row_of(runs["evaluate"], name, metric) for metric in ("reward", "kl")} for name in names}
    return {
        "seed": seed,
        "frontier": frontier.rows(),
        "policies": {name: {**point, **frontier.beside(point)} for name, point in points.items()},
        "best_of_n": [(d * d, value) for d, value in best_of_n(gold, gold, NS)],
        "seconds": seconds_of(runs.values()),
    }


def openings(stories: Path, seed: int, count: int) -> tuple[list[str], list[str]]:
    """(held out, for training): the first words of every story that has as many and more."""
    words = [story.split() for story in json.loads(stories.read_text(encoding="utf-8"))]
    texts = sorted({" ".join(one[:WORDS]) for one in words if len(one) > WORDS})
    Random(f"openings/{seed}").shuffle(texts)
    return texts[:count], texts[count:]


def as_prompts(texts: list[str]) -> list[dict[str, Any]]:
    return [{"messages": [{"role": "user", "content": text}]} for text in texts]


def opened(model: str) -> dict[str, str]:
    """The checkpoint as plain text."""
    return {"path": model, "chat_template": "none", "eos_token": EOS}


def proxy(model: str, files: dict[str, str]) -> Chain:
    """A reward model of the comparisons."""
    data = {"path": files["pairs"], "validation": 0.1, "max_length": 128}
    train = {"learning_rate": 5e-4, "batch_size": 32, "epochs": 2}
    return {"reward": {"model": opened(model), "data": data, "train": train}}


def on_rewards(model: str, files: dict[str, str], size: dict[str, Any]) -> Chain:
    """PPO on gold and on the reward model, RLOO on gold, for each β."""
    learned = {"kind": "learned", "path": "@reward", "normalised": False, "scale": 1 / SHARPNESS}
    kinds = {
        "ppo-gold": {"reward": GOLD, "critic": {"init": "zero"}, "ppo_epochs": 2},
        "ppo-learned": {"reward": learned, "critic": {"init": "zero"}, "ppo_epochs": 2},
        "rloo-gold": {"reward": GOLD, "advantage": "rloo", "samples": 4, "ppo_epochs": 1},
    }
    shared = {
        "stage": "ppo",
        "model": opened(model),
        "data": {"path": files["train"], "validation": 0, "max_length": 128},
        "train": {"learning_rate": 5e-4, "batch_size": size["batch"], "steps": size["updates"]},
        "missing_eos": {"rule": "keep"},
        "max_new_tokens": TOKENS,
    }
    return {
        f"{name}-{beta:g}".replace(".", "_"): {**shared, **kind, "kl": {"coef": beta}}
        for name, kind in kinds.items()
        for beta in size["betas"]
    }


def on_pairs(model: str, files: dict[str, str], size: dict[str, Any]) -> Chain:
    """DPO for each β."""
    return {
        f"dpo-{beta:g}".replace(".", "_"): {
            "stage": "dpo",
            "model": opened(model),
            "data": {"path": files["pairs"], "validation": 0.1, "max_length": 128},
            "train": {"learning_rate": 5e-4, "batch_size": 32, "epochs": 2},
            "beta": SHARPNESS * beta,
        }
        for beta in size["betas"]
    }


def evaluation(model: str, names: list[str], files: dict[str, str], size: dict[str, Any]) -> dict[str, Any]:
    """All policies on the held-out openings, KL to the checkpoint."""
    return {
        "models": [model, *(f"@{name}" for name in names)],
        "data": {"path": files["held_out"], "max_length": 128},
        "chat_template": "none",
        "eos_token": EOS,
        "reward": GOLD,
        "samples": size["judged"],
        "max_new_tokens": TOKENS,
    }


if __name__ == "__main__":
    main()
