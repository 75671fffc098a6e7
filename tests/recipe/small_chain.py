"""A chain of real stages on a tiny model, for tests that start processes."""

import json
from pathlib import Path

import tiny

RECIPE = """
name: small
runtime: {trackers: [], device: cpu}
stages:
  sft:
    model: {path: base, chat_template: none, eos_token: "~"}
    data: {path: demonstrations.jsonl, validation: 4}
    train: {learning_rate: 1e-3, steps: 4}
  evaluate:
    models: [base, "@sft"]
    chat_template: none
    eos_token: "~"
    data: {path: prompts.jsonl}
    reward: {kind: lexicon}
    max_new_tokens: 6
"""


def prepare(folder: Path) -> Path:
    """A tiny checkpoint, its data, and small.yaml; returns the recipe."""
    tiny.checkpoint(folder / "base")
    said = [
        ({"role": "user", "content": f"say {n}?"}, {"role": "assistant", "content": "ab" * (n % 4 + 1)})
        for n in range(24)
    ]
    rows = [json.dumps({"messages": pair}) for pair in said]
    (folder / "demonstrations.jsonl").write_text("\n".join(rows) + "\n")
    rows = [json.dumps({"messages": [question]}) for question, _ in said[:8]]
    (folder / "prompts.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "small.yaml").write_text(RECIPE)
    return folder / "small.yaml"
