"""E6: a proxy reward fitted to few comparisons is optimised until what it stands for falls (Gao et al. 2022).

    python benchmarks/evidence/overoptimisation.py [--seeds 0 1 2] [--out DIR] [--quick]

A made-up language of 64 words, each pleasant or unpleasant by a weight of its own. The gold reward likes pleasant
words and dislikes a word said twice. Proxies are reward models fitted to comparisons that it labelled; PPO
without a KL penalty is trained on them, and the gold reward watches.
"""

import itertools
import json
import math
from pathlib import Path
from random import Random
from typing import Any

from chain import Options, options_of, publish, run_chain, seconds_of, write_rows
from overoptimisation_report import picture, tables
from pool import best_of_n, compared, fitted, sampled, scores

from alignkit.report.read import Stage

LENGTH = 10  # words of every answer
MEMBERS = 3  # reward models of the ensemble
DEMONSTRATIONS = 6_000
NS = (1, 2, 4, 8, 16, 32, 64, 128)
WORDS = tuple("".join(letters) for letters in itertools.product("bdgk", "aeio", "lmrs", "u"))
Chain = dict[str, dict[str, Any]]


def main() -> None:
    options = options_of("overoptimisation", __doc__)
    found = [one_seed(options, seed) for seed in options.seeds]
    publish("overoptimisation", options, sizes(options.quick), found, tables, picture)


def sizes(quick: bool) -> dict[str, Any]:
    """Comparisons of each proxy, of the ensemble's members, PPO's updates and batch, samples for best-of-n."""
    if quick:
        return {"comparisons": [20], "ensemble": 20, "updates": 4, "batch": 32, "prompts": 4, "samples": 128}
    return {
        "comparisons": [100, 400, 1600],
        "ensemble": 400,
        "updates": 60,
        "batch": 128,
        "prompts": 32,
        "samples": 256,
    }


def one_seed(options: Options, seed: int) -> dict[str, Any]:
    """The whole chain with one seed: curves of proxy and gold, best-of-n, seconds."""
    folder, size = options.out / str(seed), sizes(options.quick)
    gold = language(folder / "data", seed)
    chain = reference(folder / "data")
    start = run_chain(folder, "overoptimisation", seed, chain)["sft"]
    model = folder / "runs/overoptimisation/sft" / start.record.artifact
    files = comparisons(folder / "data", model, gold, seed, size)
    chain |= proxies(files) | policies(folder / "data", gold, size)
    runs = run_chain(folder, "overoptimisation", seed, chain)
    completions = sampled(model, questions(seed, size["prompts"], "pool"), size["samples"], seed, LENGTH, LENGTH)
    shape = (size["prompts"], size["samples"])
    true = scores(gold, completions)
    unit = {"mean": float(true.mean()), "deviation": float(true.std())}
    searched = dict[str, Any]()
    for count in size["comparisons"]:
        path = folder / f"runs/overoptimisation/reward-{count}/model"
        proxy = scores({"kind": "learned", "path": str(path)}, completions)
        standard = (true - unit["mean"]) / unit["deviation"]
        points = {
            name: best_of_n(proxy.reshape(shape), values.reshape(shape), NS)
            for name, values in (("proxy", (proxy - proxy.mean()) / proxy.std()), ("gold", standard))
        }
        correlation = float(((proxy - proxy.mean()) / proxy.std() * standard).mean())
        searched[str(count)] = {**points, **fitted(points["gold"]), "correlation": correlation}
    ppo = {name: curve(run, unit) for name, run in runs.items() if run.record.stage == "ppo"}
    guard = runs["ppo-guarded"].record.metrics
    return {
        "seed": seed,
        "gold_of_reference": unit,
        "ppo": ppo,
        "best_of_n": searched,
        "guarded": {
            "ended_at": guard.get("guard/ended_at"),
            "gold": (guard["objective/held_out"] - unit["mean"]) / unit["deviation"],
            "kl": guard["objective/kl"],
        },
        "seconds": seconds_of(runs.values()),
    }


def language(folder: Path, seed: int) -> dict[str, Any]:
    """Write each word's weight; returns the gold reward: pleasant words, no word twice."""
    folder.mkdir(parents=True, exist_ok=True)
    random, path = Random(f"words/{seed}"), folder / "words.json"
    path.write_text(json.dumps({word: random.gauss(0, 1) for word in WORDS}))
    quality = {"kind": "lexicon", "path": str(path), "scale": 4.0}
    variety = {"kind": "rules", "rule": "repetition", "length": 1, "scale": 8.0}
    return {"kind": "combined", "of": {"quality": quality, "variety": variety}}


def questions(seed: int, count: int, purpose: str) -> list[str]:
    """Prompts of three words each."""
    random = Random(f"{purpose}/{seed}")
    return [" ".join(random.choices(WORDS, k=3)) for _ in range(count)]


def reference(folder: Path) -> Chain:
    """A model that knows nothing, and demonstrations of random words, the first of the list the most frequent."""
    random, weights = Random("reference"), [1 / math.sqrt(n + 4) for n in range(len(WORDS))]
    answers = [" ".join(random.choices(WORDS, weights, k=LENGTH)) for _ in range(DEMONSTRATIONS)]
    turns = [
        {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]}
        for prompt, answer in zip(questions(0, DEMONSTRATIONS, "demonstrations"), answers, strict=True)
    ]
    train = write_rows(folder / "demonstrations.jsonl", turns)
    text = write_rows(folder / "text.jsonl", ({"text": " ".join(WORDS)} for _ in range(32)))
    return {
        "pretrain": {
            "architecture": {"model_type": "qwen3", "layers": 2, "width": 64, "heads": 4},
            "tokenizer": {"kind": "word", "vocabulary": 128},
            "data": {"path": text, "validation": 0, "max_length": 80},
            "train": {"steps": 1, "learning_rate": 1e-9},
        },
        "sft": {
            "model": {"path": "@pretrain", "chat_template": "none"},
            "data": {"path": train, "validation": 0, "max_length": 32},
            "train": {"learning_rate": 2e-3, "batch_size": 64, "checkpoint_every": 10_000},
        },
    }


def comparisons(folder: Path, model: Path, gold: dict[str, Any], seed: int, size: dict[str, Any]) -> dict[str, str]:
    """Files of comparisons between answers of the reference, by the name of the reward model that they train."""
    most = max(*size["comparisons"], size["ensemble"], 0)
    path = folder / "comparisons.jsonl"
    if not path.is_file():
        completions = sampled(model, questions(seed, most, "comparisons"), 2, seed, LENGTH, LENGTH)
        write_rows(path, compared(completions, scores(gold, completions), seed))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    files = {f"reward-{n}": write_rows(folder / f"comparisons-{n}.jsonl", rows[:n]) for n in size["comparisons"]}
    for member in range(MEMBERS):
        drawn = Random(f"bootstrap/{seed}/{member}").choices(rows[: size["ensemble"]], k=size["ensemble"])
        files[f"member-{member}"] = write_rows(folder / f"member-{member}.jsonl", drawn)
    return files


def proxies(files: dict[str, str]) -> Chain:
    """A reward model from each file."""
    return {
        name: {
            "stage": "reward",
            "model": {"path": "@sft"},
            "data": {"path": path, "validation": 0, "max_length": 32},
            "train": {"learning_rate": 1e-3, "batch_size": 16, "epochs": 4, "checkpoint_every": 10_000},
        }
        for name, path in files.items()
    }


def policies(folder: Path, gold: dict[str, Any], size: dict[str, Any]) -> Chain:
    """PPO on each proxy, on the ensemble's lower bound, and on one proxy with the guard; the gold reward watches."""
    asked = [{"messages": [{"role": "user", "content": prompt}]} for prompt in questions(0, 2000, "ppo")]
    prompts = write_rows(folder / "prompts.jsonl", asked)

    def stage(reward: dict[str, Any], drop: float, then: str) -> dict[str, Any]:
        return {
            "stage": "ppo",
            "model": {"path": "@sft"},
            "reward": reward,
            "data": {"path": prompts, "validation": 200, "max_length": 32},
            "train": {
                "learning_rate": 1e-3,
                "batch_size": size["batch"],
                "steps": size["updates"],
                "schedule": "constant",
                "evaluate_every": 3,
                "checkpoint_every": size["updates"],
            },
            "critic": {"init": "zero"},
            "ppo_epochs": 2,
            "kl": {"coef": 0.0},
            "missing_eos": {"rule": "keep"},
            "min_new_tokens": LENGTH,
            "max_new_tokens": LENGTH,
            "guard": {"held_out": {"reward": gold, "drop": drop, "then": then}},
        }

    members = {f"member-{n}": {"kind": "learned", "path": f"@member-{n}"} for n in range(MEMBERS)}
    lower = {"kind": "combined", "of": members, "combine": "lower", "deviations": 1.0}
    counts = size["comparisons"]
    single = {count: {"kind": "learned", "path": f"@reward-{count}"} for count in counts}
    watched = {f"ppo-{count}": stage(single[count], 1e6, "warn") for count in counts}
    guarded = single[size["ensemble"]]
    return {**watched, "ppo-lower": stage(lower, 1e6, "warn"), "ppo-guarded": stage(guarded, 0.5, "roll_back")}


def curve(run: Stage, unit: dict[str, float]) -> list[dict[str, float]]:
    """Proxy, gold (in deviations of the reference's answers) and KL at each validation."""
    names = {"proxy": "objective/score", "gold": "objective/held_out", "kl": "objective/kl"}
    columns = {name: [value for _, value in run.curves[f"validation/{key}"]] for name, key in names.items()}
    columns["gold"] = [(value - unit["mean"]) / unit["deviation"] for value in columns["gold"]]
    steps = [step for step, _ in run.curves["validation/objective/kl"]]
    rows = zip(steps, *columns.values(), strict=True)
    return [dict(zip(("update", *columns), row, strict=True)) for row in rows]


if __name__ == "__main__":
    main()
