"""Held-out loss of small language models against their size, and against quantity and quality of their text.

    python recipes/examples/cut_passages.py NOVELS STORIES.json data/novels
    python benchmarks/evidence/pretraining.py [--data data/novels] [--model DIR] [--stories FILE] [--seeds 0 1 2]

Every new model sees equally many tokens, in crops of 129 at random places, of one tokenizer that was trained on the
clean text; all are judged on the same clean held-out passages. A pretrained one is trained on stories, and judged on
others before and after. The first seed does everything, the others repeat one point.
"""

import json
import math
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from random import Random
from typing import Any

from chain import Options, options_of, publish, run_chain, seconds_of, write_rows
from pretraining_report import picture, tables
from web_noise import SHARES as NOISE
from web_noise import spoil

from alignkit import ModelOptions, load_policy, load_tokenizer
from alignkit.data.documents import document_sequences
from alignkit.data.tokenizer import train_tokenizer
from alignkit.evaluation.perplexity import log_probabilities
from alignkit.evaluation.statistics import Bootstrap
from alignkit.records import Document

SHAPES = {"tiny": (2, 32, 2), "small": (3, 64, 4), "middle": (4, 112, 4), "large": (5, 176, 4)}
NAME = "pretraining"  # of the recipe
BASE = "small"  # the model of all other comparisons
SHARES = {"eighth": 1 / 8, "quarter": 1 / 4, "half": 1 / 2}
LENGTH, BATCH = 129, 8
CONTEXT = 512  # of the pretrained model
ARGUMENTS = {
    "data": {"type": Path, "default": Path("data/novels"), "help": "a folder with train.jsonl and heldout.jsonl"},
    "model": {"default": "models/stories260k", "help": "a folder with karpathy's stories260K as a transformers model"},
    "stories": {"type": Path, "default": Path("data/tinystories.json"), "help": "a JSON list of stories"},
}
CLEAN = ["quality=[gopher_repetition,c4]", "personal.action=keep"]
Chain = dict[str, dict[str, Any]]


def main() -> None:
    options = options_of("pretraining", __doc__, **ARGUMENTS)
    size = sizes(options.quick)
    files, made = texts(options, size)
    found = [one_seed(options, seed, files, size, made) for seed in options.seeds]
    publish("pretraining", options, size, found, tables, picture)


def sizes(quick: bool) -> dict[str, int]:
    """Steps, tokens of training text, size of the vocabulary, held-out passages."""
    steps = 4 if quick else 768
    tokens = steps * BATCH * (LENGTH - 1)
    return {"steps": steps, "tokens": tokens, "vocabulary": 300 if quick else 2048, "heldout": 8 if quick else 200}


def texts(options: Options, size: dict[str, int]) -> tuple[dict[str, str], dict[str, Any]]:
    """The training files by name, the tokenizer and the held-out file; and what cleaning made of the noise."""
    folder = options.out / "data"
    lines = (options.given.data / "train.jsonl").read_text(encoding="utf-8").splitlines()
    passages = [json.loads(line)["text"] for line in lines]
    Random(0).shuffle(passages)
    tokenizer = train_tokenizer(passages, "bpe", size["vocabulary"])
    tokenizer.save_pretrained(folder / "tokenizer")
    lengths = [len(ids) + 1 for ids in tokenizer(passages)["input_ids"]]
    count = least(lengths, size["tokens"])
    chosen = passages[:count]
    spoilt = {name: spoil(chosen, shares, 0) for name, shares in NOISE.items()}
    subsets = {name: chosen[: least(lengths, int(size["tokens"] * share))] for name, share in SHARES.items()}
    files = {
        name: write_rows(folder / f"{name}.jsonl", ({"text": text} for text in some))
        for name, some in {"all": chosen, **subsets, **{name: texts for name, (texts, _) in spoilt.items()}}.items()
    }
    kept: dict[str, Any] = {}
    for noise in NOISE:
        for step, command, given in (("cleaned", "clean", CLEAN), ("deduplicated", "dedup", [])):
            out = folder / f"{noise}_{step}.jsonl"
            files[out.stem] = corpus(command, files[noise if command == "clean" else f"{noise}_cleaned"], out, *given)
            report = json.loads((folder / f"{out.stem}.report.json").read_text())
            kept[out.stem] = {key: report[key] for key in ("records", "removed", "kept")}
    written = {name: Path(path).stat().st_size for name, path in files.items()}
    stories = json.loads(options.given.stories.read_text(encoding="utf-8"))
    held_out = stories[9::10]
    del stories[9::10]
    return files | {
        "tokenizer": str(folder / "tokenizer"),
        "heldout": str(options.given.data / "heldout.jsonl"),
        "stories": write_rows(folder / "stories.jsonl", ({"text": text} for text in stories)),
        "other_stories": write_rows(folder / "other_stories.jsonl", ({"text": text} for text in held_out)),
    }, {
        "passages": count,
        "bytes": written,
        "noise": {name: counts for name, (_, counts) in spoilt.items()},
        "corpus": kept,
    }


def least(lengths: list[int], tokens: int) -> int:
    """How many of the first passages hold so many tokens."""
    held = 0
    for number, length in enumerate(lengths, 1):
        held += length
        if held >= tokens:
            return number
    return len(lengths)


def corpus(command: str, source: str, out: Path, *options: str) -> str:
    """Run `alignkit data <command>`; returns the file that it wrote."""
    words = [sys.executable, "-m", "alignkit", "data", command, source, str(out), "--as", "corpus", *options]
    if not out.is_file():
        subprocess.run(words, check=True, stdout=sys.stderr)
    return str(out)


def one_seed(
    options: Options, seed: int, files: dict[str, str], size: dict[str, int], made: dict[str, Any]
) -> dict[str, Any]:
    """Train all models, or the base alone with a later seed; their held-out losses."""
    chain = {BASE: stage(BASE, "all", files, size)}
    if seed == options.seeds[0]:
        chain |= {name: stage(name, "all", files, size) for name in SHAPES}
        qualities = [name for name in files if name.startswith(tuple(NOISE))]
        chain |= {name: stage(BASE, name, files, size) for name in (*SHARES, *qualities)}
        chain["continued"] = continued(str(options.given.model), files)
    folder = options.out / str(seed)
    runs = run_chain(folder, NAME, seed, chain)
    models = {name: folder / "runs" / NAME / name / runs[name].record.artifact for name in chain}
    found = {"seed": seed, "made": made}
    if "continued" in chain:
        both = {"before": options.given.model, "after": models.pop("continued")}
        found["continued"] = {
            f"{name}{'' if end else ', without end marks'}": judged(
                str(path), files["other_stories"], size["heldout"], CONTEXT, end=end
            )
            for name, path in both.items()
            for end in (True, False)
        }
    return {
        **found,
        "models": {name: judged(str(path), files["heldout"], size["heldout"]) for name, path in models.items()},
        "seconds": seconds_of(runs.values()),
    }


def stage(shape: str, text: str, files: dict[str, str], size: dict[str, int]) -> dict[str, Any]:
    """A Llama of one shape on one text."""
    layers, width, heads = SHAPES[shape]
    return {
        "stage": "pretrain",
        "architecture": {"model_type": "llama", "layers": layers, "width": width, "heads": heads},
        "tokenizer": {"path": files["tokenizer"]},
        "data": {"path": files[text], "max_length": LENGTH, "validation": 0},
        "example": "crop",
        "train": {
            "learning_rate": 2e-3,
            "min_learning_rate": 2e-4,
            "schedule": "cosine",
            "warmup": 0.05,
            "batch_size": BATCH,
            "steps": size["steps"],
        },
    }


def continued(model: str, files: dict[str, str]) -> dict[str, Any]:
    """A pretrained model trained on with stories."""
    return {
        "stage": "pretrain",
        "model": {"path": model},
        "data": {"path": files["stories"], "max_length": CONTEXT, "validation": 0},
        "train": {"learning_rate": 3e-4, "batch_size": 16, "epochs": 4, "schedule": "cosine"},
    }


def judged(folder: str, heldout: str, count: int, length: int = LENGTH, *, end: bool = True) -> dict[str, Any]:
    """Parameters of a checkpoint; nats per token and bits per byte on documents, with 95 % intervals over these.

    Without `end`, the mark that ends each document is not counted.
    """
    policy, tokenizer = load_policy(ModelOptions(path=folder), trainable=False).eval(), load_tokenizer(folder)
    lines = Path(heldout).read_text(encoding="utf-8").splitlines()[:count]
    documents = [Document.model_validate_json(line) for line in lines]
    pieces = document_sequences(documents, tokenizer, length)
    if not end:
        for one in pieces:
            one[-1] = replace(one[-1], weights=[*one[-1].weights[:-1], 0.0])
    nats = iter((-log_probabilities(policy, [piece for one in pieces for piece in one], 8192)).tolist())
    per_text = [sum(next(nats) for _ in one) for one in pieces]
    tokens = [sum(sum(piece.weights) for piece in one) for one in pieces]
    size = [math.log(2) * len(document.text.encode()) for document in documents]
    bootstrap = Bootstrap()
    return {
        "parameters": policy.model.num_parameters(),
        "nll": asdict(bootstrap.ratio(per_text, tokens)),
        "bits_per_byte": asdict(bootstrap.ratio(per_text, size)),
    }


if __name__ == "__main__":
    main()
