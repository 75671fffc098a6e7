"""Small runs of the stages that write data, also as a process of their own: `python sample_cases.py FOLDER`."""

import json
import sys
from pathlib import Path
from typing import Any

import tiny

from alignkit import chunks
from alignkit.config import build
from alignkit.options.critique import CritiqueConfig
from alignkit.options.sample import SampleConfig
from alignkit.options.shared import RuntimeOptions
from alignkit.records import Completion, Scores
from alignkit.runs import Run
from alignkit.stages import critique, sample

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


def options(folder: Path, changes: dict[str, Any]) -> dict[str, Any]:
    model = {"path": str(folder / "model"), "chat_template": "none", "eos_token": tiny.END}
    data = {"path": str(folder / "prompts.jsonl"), "max_length": 100} | changes.pop("data", {})
    return {"model": model, "data": data, "max_new_tokens": 8, "unfinished": "keep"} | changes


def sampling(folder: Path, **changes: Any) -> SampleConfig:
    """Five answers of at most 8 letters to each prompt."""
    return build(SampleConfig, {"reward": {"kind": "lexicon"}, "samples": 5} | options(folder, changes), "")


def critiquing(folder: Path, **changes: Any) -> CritiqueConfig:
    """Two rounds with answers of at most 8 letters."""
    given = {"guidelines": str(folder / "rules.yaml"), "rounds": 2, "write": "both"} | options(folder, changes)
    return build(CritiqueConfig, given, "")


def start(
    directory: Path, config: SampleConfig | CritiqueConfig, reward: Any = letters, runtime: RuntimeOptions = QUIET
) -> Run:
    """Runs the stage of `config` in `directory`, or goes on there; returns the finished run."""
    stage = "sample" if isinstance(config, SampleConfig) else "critique"
    run = Run.open(directory, stage, config, runtime, id="test")
    if isinstance(config, SampleConfig):
        folder = sample.run(config, runtime, run, reward)
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
