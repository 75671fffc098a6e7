"""E8: three-digit addition, taught by examples to about half, then by a verifier alone; and a run that collapses.

    python benchmarks/evidence/addition.py [--seeds 0 1 2] [--out DIR] [--quick] [--collect]

A model of 4 layers and width 64 reads `ABC+DEF=` as characters and answers with four digits, the last one first. SFT
goes on by epochs until its held-out loss says that about half is right. RLOO then has the verifier's 0 or 1 and
nothing else. With a rate three times as high and half the prompts it collapses; the guard goes back to the best.
"""

from pathlib import Path
from random import Random
from typing import Any

from addition_report import picture, tables
from chain import Options, options_of, publish, row_of, run_chain, seconds_of
from chain import write_rows as write

from alignkit.report.read import Stage, read_stages

TRAINED, HELD_OUT, TESTED = 10_000, 1_000, 1_000
HALF = 0.25  # nats a token over five tokens: about half of the answers are right
NAME = "addition"  # of the recipe
Chain = dict[str, dict[str, Any]]


def main() -> None:
    collect = {"action": "store_true", "help": "run nothing: tabulate what is there, finished or not"}
    options = options_of("addition", __doc__, collect=collect)
    found = [collected(options, seed) if options.given.collect else one_seed(options, seed) for seed in options.seeds]
    publish("addition", options, sizes(options.quick), found, tables, picture)


def sizes(quick: bool) -> dict[str, int]:
    """Updates of the two runs and between validations, prompts of an update, further epochs of SFT at most."""
    updates = {"rloo": 4, "fast": 4, "rloo_every": 2, "fast_every": 2, "more_sft": 1}
    if not quick:
        updates = {"rloo": 606, "fast": 80, "rloo_every": 40, "fast_every": 5, "more_sft": 20}
    return {**updates, "rloo_prompts": 64, "fast_prompts": 32, "samples": 8}


def one_seed(options: Options, seed: int) -> dict[str, Any]:
    """Bring the whole chain up to date with one seed; what it found."""
    folder, size = options.out / str(seed), sizes(options.quick)
    files = sums(folder / "data", seed)
    chain, last = supervised(files), "sft"
    runs = run_chain(folder, NAME, seed, chain)
    while runs[last].record.metrics["nll"] > HALF and len(chain) < size["more_sft"] + 2:
        name = f"sft-{len(chain) - 1}"
        train = {**chain["sft"]["train"], "epochs": 1, "learning_rate": 1e-3, "warmup": 0.0}
        chain[name] = {**chain["sft"], "stage": "sft", "model": {"path": f"@{last}"}, "train": train}
        runs, last = run_chain(folder, NAME, seed, chain), name
    run_chain(folder, NAME, seed, chain | reinforced(files, f"@{last}", size))
    return collected(options, seed)


def collected(options: Options, seed: int) -> dict[str, Any]:
    """Curves, evaluations and seconds of what one seed's runs left; of an unfinished run its curve."""
    size = sizes(options.quick)
    runs = {run.name: run for run in read_stages(options.out / str(seed) / "runs" / NAME)}
    done = {name: run for name, run in runs.items() if run.record.status == "done"}
    epochs = 6 + sum(name.startswith("sft-") for name in runs)
    tested = {
        name: row_of(done[table], f"sft-{epochs - 6}" if name == "sft" else name, "reward")
        for table, names in {"collapse": ("sft", "fast", "guarded"), "learnt": ("rloo",)}.items()
        for name in names
        if table in done
    }
    return {
        "seed": seed,
        "sft_epochs": epochs,
        "curves": {name: curve(runs[name], size) for name in ("rloo", "fast", "guarded") if name in runs},
        "unfinished": [name for name in runs if name not in done],
        "ended_at": done["guarded"].record.metrics.get("guard/ended_at") if "guarded" in done else None,
        "tested": tested,
        "seconds": seconds_of(done.values()),
    }


def sums(folder: Path, seed: int) -> dict[str, str]:
    """Files of different sums: demonstrations (of which some are held out), the same as text, and those to test on."""
    pairs = Random(seed).sample(range(1_000_000), TRAINED + HELD_OUT + TESTED)
    asked = [divmod(pair, 1000) for pair in pairs]
    rows = [(f"{a:03d}+{b:03d}=", f"{a + b:04d}"[::-1]) for a, b in asked]
    turns = [
        {"messages": [{"role": "user", "content": sum}, {"role": "assistant", "content": answer}]}
        for sum, answer in rows
    ]
    return {
        "text": write(folder / "text.jsonl", ({"text": sum + answer} for sum, answer in rows[:-TESTED])),
        "train": write(folder / "train.jsonl", turns[:-TESTED]),
        "test": write(folder / "test.jsonl", turns[-TESTED:]),
    }


def supervised(files: dict[str, str]) -> Chain:
    """A model that knows nothing (one step at no rate), and its first epochs of demonstrations."""
    data = {"path": files["train"], "validation": HELD_OUT, "max_length": 16}
    return {
        "pretrain": {
            "architecture": {"model_type": "qwen3", "layers": 4, "width": 64, "heads": 4, "feed_forward": 216},
            "tokenizer": {"kind": "character", "vocabulary": 64},
            "data": {"path": files["text"], "validation": 0, "max_length": 16},
            "train": {"steps": 1, "learning_rate": 1e-9},
        },
        "sft": {
            "model": {"path": "@pretrain", "chat_template": "none"},
            "data": data,
            "train": {"learning_rate": 2e-3, "batch_size": 128, "epochs": 6, "schedule": "constant"},
        },
    }


def reinforced(files: dict[str, str], start: str, size: dict[str, int]) -> Chain:
    """RLOO with the verifier, the run that collapses without and with the guard, and the evaluations."""
    rule = {"kind": "rules", "rule": "exact_match"}

    def stage(name: str, rate: float) -> dict[str, Any]:
        return {
            "stage": "ppo",
            "model": {"path": start},
            "reward": rule,
            "data": {"path": files["train"], "validation": HELD_OUT, "max_length": 16},
            "train": {
                "learning_rate": rate,
                "batch_size": size[f"{name}_prompts"] * size["samples"],
                "steps": size[name],
                "schedule": "constant",
                "eps": 1e-8,
                "evaluate_every": size[f"{name}_every"],
            },
            "advantage": "rloo",
            "samples": size["samples"],
            "ppo_epochs": 1,
            "kl": {"coef": 0.0},
            "missing_eos": {"rule": "keep"},
            "max_new_tokens": 5,
        }

    guard = {"held_out": {"reward": rule, "drop": 0.15, "then": "roll_back"}}
    evaluation = {
        "stage": "evaluate",
        "data": {"path": files["test"], "max_length": 16},
        "reward": rule,
        "max_new_tokens": 5,
    }
    fast = stage("fast", 1e-3)
    fast["train"]["warmup"] = 0.25  # without one the first updates already ruin it, and there is nothing to watch
    return {
        "fast": fast,
        "guarded": {**fast, "guard": guard},
        "collapse": {**evaluation, "models": [start, "@fast", "@guarded"]},
        "rloo": stage("rloo", 3e-4),
        "learnt": {**evaluation, "models": [start, "@rloo"]},
    }


def curve(run: Stage, size: dict[str, int]) -> list[tuple[int, float]]:
    """(samples so far, share of the held-out sums that a sampled answer solves)."""
    samples = size["rloo_prompts" if run.name == "rloo" else "fast_prompts"] * size["samples"]
    return [(int(update) * samples, score) for update, score in run.curves["validation/objective/score"]]


if __name__ == "__main__":
    main()
