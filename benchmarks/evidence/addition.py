"""E8: three-digit addition, taught by examples to about half, then by a verifier alone; and a run that collapses.

    python benchmarks/evidence/addition.py [--seeds 0 1 2] [--out DIR] [--quick]

A model of 4 layers and width 64 reads `ABC+DEF=` as characters and answers with four digits, the last one first. SFT
goes on by epochs until its held-out loss says that about half is right. RLOO then has the verifier's 0 or 1 and
nothing else. With a rate three times as high and half the prompts it collapses; the guard goes back to the best.
"""

from pathlib import Path
from random import Random
from typing import Any

from chain import Options, axes_of, options_of, row_of, run_chain, save, seconds_of, spread, table, write_results
from chain import write_rows as write

from alignkit.report.read import Stage

TRAINED, HELD_OUT, TESTED = 10_000, 1_000, 1_000
HALF = 0.25  # nats a token over five tokens: about half of the answers are right
MARKS = (204_800, 310_272)  # samples after which the published run was read
MODELS = {"sft": "SFT", "rloo": "RLOO", "fast": "RLOO, too fast", "guarded": "the same, guarded"}
Chain = dict[str, dict[str, Any]]


def main() -> None:
    options = options_of("addition", __doc__)
    found = [one_seed(options, seed) for seed in options.seeds]
    write_results(options.results("addition"), options, {"sizes": sizes(options.quick), "runs": found})
    print(tables(found))
    picture(found, options.picture("addition"))


def sizes(quick: bool) -> dict[str, int]:
    """Updates of the two runs, prompts of an update, updates between validations, further epochs of SFT at most."""
    updates = {"rloo": 4, "fast": 4, "every": 2, "more_sft": 1} if quick else {"rloo": 606, "fast": 600}
    return {"every": 40, "more_sft": 20, **updates, "rloo_prompts": 64, "fast_prompts": 32, "samples": 8}


def one_seed(options: Options, seed: int) -> dict[str, Any]:
    """The whole chain with one seed: curves, evaluations, seconds."""
    folder, size = options.out / str(seed), sizes(options.quick)
    files = sums(folder / "data", seed)
    chain, last = supervised(files), "sft"
    runs = run_chain(folder, "addition", seed, chain)
    while runs[last].record.metrics["nll"] > HALF and len(chain) < size["more_sft"] + 2:
        name = f"sft-{len(chain) - 1}"
        train = {**chain["sft"]["train"], "epochs": 1, "learning_rate": 1e-3, "warmup": 0.0}
        chain[name] = {**chain["sft"], "stage": "sft", "model": {"path": f"@{last}"}, "train": train}
        runs, last = run_chain(folder, "addition", seed, chain), name
    examples = {"sft_examples": int(runs["sft"].curves["data/train"][0][1] * (6 + len(chain) - 2))}
    chain |= reinforced(files, f"@{last}", size)
    runs = run_chain(folder, "addition", seed, chain)
    own = {name: last if name == "sft" else name for name in MODELS}
    return {
        "seed": seed,
        **examples,
        "curves": {name: curve(runs[name], size) for name in ("rloo", "fast", "guarded")},
        "ended_at": runs["guarded"].record.metrics.get("guard/ended_at"),
        **{kind: {name: row_of(runs[kind], own[name], "reward") for name in MODELS} for kind in ("sampled", "greedy")},
        "seconds": seconds_of(runs.values()),
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
                "evaluate_every": size["every"],
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
        "models": [start, "@rloo", "@fast", "@guarded"],
        "data": {"path": files["test"], "max_length": 16},
        "reward": rule,
        "max_new_tokens": 5,
    }
    return {
        "rloo": stage("rloo", 3e-4),
        "fast": stage("fast", 1e-3),
        "guarded": {**stage("fast", 1e-3), "guard": guard},
        "sampled": {**evaluation, "temperature": 1.0},
        "greedy": {**evaluation, "temperature": 0.0},
    }


def curve(run: Stage, size: dict[str, int]) -> list[tuple[int, float]]:
    """(samples so far, share of the held-out sums that a sampled answer solves)."""
    samples = size["rloo_prompts" if run.name == "rloo" else "fast_prompts"] * size["samples"]
    return [(int(update) * samples, score) for update, score in run.curves["validation/objective/score"]]


def at(points: list[tuple[int, float]], samples: int) -> float:
    """The curve's value at the validation nearest to so many samples."""
    return min(points, key=lambda point: abs(point[0] - samples))[1]


def tables(found: list[dict[str, Any]]) -> str:
    """Exact match of all models, and along the runs."""
    ends = [
        [title, *(spread([run[kind][name]["value"] for run in found]) for kind in ("sampled", "greedy"))]
        for name, title in MODELS.items()
    ]
    along = [[f"{mark:,}", spread([at(run["curves"]["rloo"], mark) for run in found])] for mark in MARKS]
    held = [
        [
            f"{run['seed']}",
            f"{max(score for _, score in run['curves']['fast']):.3f}",
            f"{run['curves']['fast'][-1][1]:.3f}",
            "never" if run["ended_at"] is None else f"{run['ended_at']:.0f}",
            f"{run['sampled']['fast']['value']:.3f}",
            f"{run['sampled']['guarded']['value']:.3f}",
        ]
        for run in found
    ]
    head = ["seed", "best held-out", "last held-out", "guard ends at update", "test, last", "test, guarded"]
    return "\n\n".join(
        [
            table(["exact match, test", "sampled", "greedy"], ends),
            table(["RLOO samples", "exact match, held out, sampled"], along),
            table(head, held),
        ]
    )


def picture(found: list[dict[str, Any]], path: Path) -> None:
    """Held-out exact match against samples: the run that learns, and the one that collapses."""
    figure, (left, right) = axes_of(2)
    for number, run in enumerate(found):
        for axes, name in ((left, "rloo"), (right, "fast")):
            samples, scores = zip(*run["curves"][name], strict=True)
            axes.plot([n / 1000 for n in samples], scores, lw=1.3, color=f"C{number}", label=f"seed {run['seed']}")
        samples, scores = zip(*run["curves"]["guarded"], strict=True)
        best = max(range(len(scores)), key=scores.__getitem__)
        right.plot(samples[best] / 1000, scores[best], "*", ms=9, color=f"C{number}")
        right.plot(samples[-1] / 1000, scores[-1], "x", ms=6, color=f"C{number}")
    left.set_title("rate 3e-4, 64 prompts", fontsize=9)
    right.set_title("rate 1e-3, 32 prompts: the guard\nends at x and goes back to the star", fontsize=9)
    left.set_ylabel("exact match, held out, sampled")
    left.legend(fontsize=8, frameon=False, loc="lower right")
    for axes in (left, right):
        axes.set_xlabel("thousand samples")
        axes.set_ylim(0, 1)
    save(figure, path)


if __name__ == "__main__":
    main()
