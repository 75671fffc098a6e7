"""Makes the data of calculator.yaml: python recipes/examples/calculator_questions.py FOLDER

Products of a number of three digits and one of two. Documents show that what is asked, what is calculated and what is
answered are the same numbers; of the demonstrations three in ten call the calculator, the others answer at once, as
a person would who knows; prompts, and those held out, carry the right answer as a column.
"""

import json
import sys
from pathlib import Path
from random import Random

CALLS = 0.3
"""The share of demonstrations that call the calculator."""


def write(
    folder: Path, documents: int = 8000, demonstrations: int = 8000, prompts: int = 2000, heldout: int = 500
) -> None:
    """Write corpus.jsonl, demonstrations.jsonl, prompts.jsonl and heldout.jsonl; no product is in two of them."""
    random = Random(0)
    products = [(a, b) for a in range(101, 1000) for b in range(11, 100)]
    drawn = iter(random.sample(products, documents + demonstrations + prompts + heldout))
    lines: dict[str, list[dict]] = {"corpus": [], "demonstrations": [], "prompts": [], "heldout": []}
    for _ in range(documents):
        a, b = next(drawn)
        arguments = json.dumps({"expression": f"{a}*{b}"})
        call = f'<tool_call>{{"name": "calculator", "arguments": {arguments}}}</tool_call>'
        lines["corpus"].append({"text": f"What is {a}*{b}?\n{call}\n{a * b}\n{a * b}"})
    for _ in range(demonstrations):
        a, b = next(drawn)
        asked, answer = question(a, b), {"role": "assistant", "content": str(a * b)}
        call = {"name": "calculator", "arguments": {"expression": f"{a}*{b}"}}
        called = [{"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": str(a * b)}]
        lines["demonstrations"].append({"messages": [asked, *(called if random.random() < CALLS else []), answer]})
    for n, (a, b) in enumerate(drawn):
        name = "prompts" if n < prompts else "heldout"
        lines[name].append({"messages": [question(a, b)], "answer": str(a * b)})
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in lines.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def question(a: int, b: int) -> dict[str, str]:
    """What is asked."""
    return {"role": "user", "content": f"What is {a}*{b}?"}


if __name__ == "__main__":
    write(Path(sys.argv[1]))
