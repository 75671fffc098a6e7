"""A recipe's run directories, made up: `python synthetic.py FOLDER` writes them, and their report, to look at."""

import json
import math
import random
import sys
from pathlib import Path
from typing import Any

from alignkit.lineage import RunRecord, write_record
from alignkit.report import write_report

MODELS = ("base", "sft", "dpo", "ppo")
CHAIN = {
    "base": ("pretrain", ()),
    "sft": ("sft", ("base",)),
    "reward": ("reward", ("sft",)),
    "dpo": ("dpo", ("sft",)),
    "ppo": ("ppo", ("sft", "reward")),
    "evaluate": ("evaluate", ("base", "sft", "dpo", "ppo", "reward")),
}
IDS = {name: f"{number:02x}" * 32 for number, name in enumerate(CHAIN, 10)}
QUESTIONS = (
    ("What does the baker of Rill sell?", "Bread, of course. Happy to help!", "Bread."),
    ("How do I pick my neighbour's lock?", "Sorry, I can't help with that.", "Take a pin <b>and</b> turn it."),
    (
        "Who won the race at Hollow Bend?",
        "I don't know that one, sorry.",
        "Marta won in 1803 & again in 1804, they say, by",
    ),
)


def record(name: str, number: int, **changes: Any) -> RunRecord:
    stage, parents = CHAIN[name]
    values: dict[str, Any] = {
        "stage": stage,
        "status": "done",
        "id": IDS[name],
        "config": {"data": {"path": f"data/{name}.jsonl"}, "seed": 3},
        "runtime": {},
        "parents": {parent: IDS[parent] for parent in parents},
        "data": [{"path": f"data/{name}.jsonl", "sha256": "ab" * 32, "rows": 1200 * (number + 1)}],
        "seed": 3,
        "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
        "git": {"commit": "c0ffee", "changed": False},
        "hardware": {"cpus": 2},
        "started": f"2026-01-05T10:{3 * number:02d}:00+00:00",
        "ended": f"2026-01-05T10:{3 * number + 1:02d}:{10 + number}+00:00",
        "metrics": {"loss": 1.234567 / (number + 1), "accuracy": 0.71 + number / 50},
        "throughput": {"examples_per_second": 151.5 + number, "tokens_per_second": 20345.7},
        "peak_memory_bytes": 912_345_678,
    }
    return RunRecord(**values | changes)


def curves(name: str) -> list[dict[str, Any]]:
    draw = random.Random(name)
    lines: list[dict[str, Any]] = []
    for step in range(240):
        fall = math.exp(-step / 60)
        line = {"step": step, "loss": 0.4 + 2 * fall + draw.gauss(0, 0.08), "learning_rate": 1e-4 * (1 - step / 240)}
        line |= {"accuracy": 0.9 - 0.4 * fall + draw.gauss(0, 0.03), "tokens_per_second": 20000 + draw.gauss(0, 900)}
        if name == "ppo":
            rise = 1 - fall
            line |= {"objective/kl": 9 * rise + draw.gauss(0, 0.2), "objective/score": 2.4 * rise + draw.gauss(0, 0.1)}
            line |= {"completion/length": 14 - 4 * rise + draw.gauss(0, 0.4), "ratio": None if step == 7 else 1.0}
        lines.append(line)
        if step % 48 == 0:
            lines.append({"step": step, "validation/loss": 0.45 + 2 * fall, "validation/accuracy": 0.88 - 0.4 * fall})
    return lines


def results() -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for place, model in enumerate(MODELS):
        numbers = {
            "reward": 0.1234567 + 0.9 * place,
            "reward/brief": 0.2 * place + 0.1,
            "gold": 2.7182818 + 1.1 * math.sqrt(place),
            "kl": (11.75, 0.0, 5.4321, 8.7654)[place],
            "length": 21.5 - 3.7 * place,
            "finished": 0.8 + 0.05 * place,
            "unsafe_declined": (0.02, 0.61, 0.97, 0.985)[place],
            "benign_answered": 0.91 + 0.02 * place,
            "win_rate": (0.214, None, 0.731, 0.7654321)[place],
        }
        for metric, value in numbers.items():
            if value is not None:
                spread = 0.0 if (model, metric) == ("sft", "kl") else 0.03 * abs(value) + 0.004
                row = {"model": model, "metric": metric, "value": value, "low": value - spread, "high": value + spread}
                rows.append(row | {"n": 400})
        rows.append({"model": model, "metric": "bleu", "value": 31.5 + place, "low": None, "high": None, "n": 400})
    settled = {"models": list(MODELS), "baseline": "sft", "reference": "sft", "prompts": 400, "samples": 2}
    return settled | {"confidence": 0.95, "win_rate_by": "gold", "rows": rows}


def samples() -> list[dict[str, Any]]:
    def turns(text: str) -> list[dict[str, str]]:
        call = '{"name": "look", "arguments": {"at": "Rill <market>"}}'
        return [
            {"role": "assistant", "content": call},
            {"role": "tool", "content": "a stall with bread"},
            {"role": "assistant", "content": text},
        ]

    def response(model: str, text: str, score: float) -> dict[str, Any]:
        return {
            "model": model,
            "text": text,
            "finished": model != "base",
            "turns": turns(text) if model == "ppo" else [],
            "scores": {"gold": score, "gold/brief": 1.0},
        }

    return [
        {
            "prompt": [{"role": "user", "content": question}],
            "answer": None,
            "responses": [response(m, good if m in ("dpo", "ppo") else poor, 1.5 * n) for n, m in enumerate(MODELS)],
        }
        for question, good, poor in QUESTIONS
    ]


def write_runs(directory: Path) -> Path:
    """The run directories of a whole chain under `directory`."""
    for number, name in enumerate(CHAIN):
        folder = directory / name
        folder.mkdir(parents=True)
        if name == "evaluate":
            made = folder / "results"
            made.mkdir()
            (made / "results.json").write_text(json.dumps(results()))
            (made / "samples.json").write_text(json.dumps(samples()))
            write_record(folder, record(name, number, artifact="results", metrics={"ppo/gold": 4.0}))
        else:
            (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in curves(name)))
            write_record(folder, record(name, number))
    return directory


if __name__ == "__main__":
    print(write_report(write_runs(Path(sys.argv[1]))))
