"""Small runs of the stages that write data, also as a process of their own: `python sample_cases.py FOLDER`."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import tiny

from alignkit import chunks
from alignkit.chat import ChatFormat
from alignkit.config import build
from alignkit.data.read import read
from alignkit.generate import rollout
from alignkit.models import load_policy, load_tokenizer
from alignkit.options.critique import CritiqueConfig
from alignkit.options.sample import SampleConfig
from alignkit.options.shared import ModelOptions, RuntimeOptions
from alignkit.records import Completion, Prompt, Scores
from alignkit.runs import Run
from alignkit.stages import critique, sample
from reward_models.judge import Messages, comparison

QUIET = RuntimeOptions(trackers=[], device="cpu")
PROMPTS = 22


def letters(completions: list[Completion]) -> Scores:
    """How many of a … e stand in the response, and of how many kinds."""
    texts = [completion.response.content for completion in completions]
    counts = tuple(float(sum(letter in "abcde" for letter in text)) for text in texts)
    return Scores(total=counts, parts={"kinds": tuple(float(len(set(text) & set("abcde"))) for text in texts)})


def prepare(folder: Path) -> Path:
    """A tiny checkpoint, prompts and guidelines in `folder`."""
    tiny.checkpoint(folder / "model")
    texts = [f"say {n}" + "?" * (n % 5) for n in range(PROMPTS)]
    rows = [
        {"id": str(n), "messages": [{"role": "user", "content": text}], "answer": str(n)}
        for n, text in enumerate(texts)
    ]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rules.yaml").write_text("- critique: wrong?\n  revision: again\n- critique: rude?\n  revision: nicer\n")
    return folder


def verdict(first: str, second: str) -> str | None:
    """What `judging` thinks of two answers in this order: it counts letters, prefers the first of answers that are
    as good as each other, and says nothing sensible where they differ by three."""
    one, other = (sum(letter in "abcde" for letter in text) for text in (first, second))
    return None if abs(one - other) == 3 else "first" if one >= other else "second"


def judging(conversations: list[Messages]) -> list[str]:
    """A judge by `verdict`."""
    pattern = re.compile(r"<first>\n(.*)\n</first>\n\n<second>\n(.*)\n</second>", re.DOTALL)
    found = [pattern.search(messages[-1]["content"]) for messages in conversations]
    return [f"Well.\nBetter: {verdict(*match.groups()) or 'both'}" for match in found if match]


def options(folder: Path, changes: dict[str, Any]) -> dict[str, Any]:
    model = {"path": str(folder / "model"), "chat_template": "none", "eos_token": tiny.END}
    data = {"path": str(folder / "prompts.jsonl"), "max_length": 100} | changes.pop("data", {})
    return {"model": model, "data": data, "max_new_tokens": 8, "unfinished": "keep"} | changes


def sampling(folder: Path, **changes: Any) -> SampleConfig:
    """Five answers of at most 8 letters to each prompt."""
    given = {} if "judge" in changes else {"reward": {"kind": "lexicon"}}
    return build(SampleConfig, given | {"samples": 5} | options(folder, changes), "")


def judge(folder: Path, **changes: Any) -> dict[str, Any]:
    """A judge's options; nobody answers there."""
    return {"guidelines": str(folder / "rules.yaml"), "url": "http://127.0.0.1:9/v1", "model": "m"} | changes


def critiquing(folder: Path, **changes: Any) -> CritiqueConfig:
    """Two rounds with answers of at most 8 letters."""
    given = {"guidelines": str(folder / "rules.yaml"), "rounds": 2, "write": "both"} | options(folder, changes)
    return build(CritiqueConfig, given, "")


def draws(folder: Path) -> list[tuple[Prompt, list[Completion]]]:
    """Each prompt with the five answers that seed 0 draws, all generated at once."""
    format = ChatFormat.load(load_tokenizer(str(folder / "model")), "none", tiny.END)
    policy = load_policy(ModelOptions(path=str(folder / "model")), trainable=False, format=format).eval()
    prompts = read(folder / "prompts.jsonl", Prompt).records
    found = rollout(policy, format, prompts, seed=0, update=0, samples=5, max_new_tokens=8)
    return [(prompt, found[5 * n : 5 * n + 5]) for n, prompt in enumerate(prompts)]


def texts_of(answers: list[Completion]) -> list[str]:
    return [answer.response.content for answer in answers]


class PowerCut(BaseException):
    """What a test raises for a kill."""


def start(
    directory: Path,
    config: SampleConfig | CritiqueConfig,
    reward: Any = letters,
    runtime: RuntimeOptions = QUIET,
    ask: Any = judging,
) -> Run:
    """Runs the stage of `config` in `directory`, or goes on there; returns the finished run."""
    stage = "sample" if isinstance(config, SampleConfig) else "critique"
    run = Run.open(directory, stage, config, runtime, id="test")
    if isinstance(config, SampleConfig):
        folder = sample.run(config, runtime, run, reward, comparison(ask, "Be good.", skip=False) if ask else None)
    else:
        folder = critique.run(config, runtime, run)
    assert run.record.status == "done" and folder == directory / run.record.artifact == directory / "data"
    return run


def written(run: Run) -> dict[str, bytes]:
    """The data files by name."""
    return {path.name: path.read_bytes() for path in sorted((run.directory / "data").iterdir())}


if __name__ == "__main__":
    place = Path(sys.argv[1])
    chunks.CHUNK = 5
    start(place / "sampled", sampling(place, write="ranking"))
    start(place / "critiqued", critiquing(place))
    start(place / "judged", sampling(place, write="ranking", judge=judge(place)))
