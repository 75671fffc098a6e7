"""Peak memory of a training that streams its data, by the number of rows; rows are made up, training is 20 steps.

    python benchmarks/stream_memory.py 1000 100000 1000000 [--in-memory | --tokenized | --preferences]

Each size runs in a process of its own: a file of short texts is read, split, tokenized to the disk by a character
tokenizer, and a small model takes 20 steps of 64 rows of one order over all of them and validates twice on 500.
With --tokenized, no file is read: texts that are made up are split, and one row's tokens are written as often; what
follows is the same. With --preferences, the rows are pairs, and DPO takes the steps: the reference's log-probabilities
of all of them are computed first.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from alignkit.data.split import SplitDraws, held_out
from alignkit.examples import Examples
from alignkit.loop import FitResult, fit
from alignkit.options.dpo import DpoConfig
from alignkit.options.pretrain import PretrainConfig
from alignkit.options.shared import RuntimeOptions
from alignkit.progress import peak_memory_bytes
from alignkit.records import Document
from alignkit.runs import Run
from alignkit.stages import dpo, pretrain
from alignkit.store import StoreWriter, read_store
from alignkit.trie import TokenSequence

STEPS = 20
VALIDATION = 500


def write_rows(path: Path, rows: int) -> None:
    """`rows` different texts of some 30 characters."""
    with path.open("w", encoding="utf-8") as file:
        for n in range(rows):
            file.write(json.dumps({"text": f"row {n} holds {n * 2654435761 % 2**32:032b}"[:40]}) + "\n")


def write_pairs(path: Path, rows: int) -> None:
    """`rows` different prompts of some 30 characters, each with a better and a worse answer."""
    with path.open("w", encoding="utf-8") as file:
        for n in range(rows):
            row = {"prompt": f"row {n} holds {n * 2654435761 % 2**32:032b}"[:40], "chosen": "010", "rejected": "101"}
            file.write(json.dumps(row) + "\n")


def train(folder: Path, rows: int, how: str) -> None:
    """Train on `folder`/rows.jsonl; prints the seconds until the first step, the bytes on the disk and the peak."""
    started, figures = time.monotonic(), dict[str, float]()
    stage, kind = (dpo, DpoConfig) if how == "preferences" else (pretrain, PretrainConfig)

    def told(*arguments: Any) -> FitResult:
        disk = sum(file.stat().st_size for file in (folder / "run").glob("*.sqlite"))
        figures.update(seconds=time.monotonic() - started, disk=disk)
        return fit(*arguments)

    stage.fit = told
    if how == "tokenized":
        pretrain.read_examples = lambda *_: tokenized(folder / "run" / "examples.sqlite", rows)
    path = folder / ("few.jsonl" if how == "tokenized" else "rows.jsonl")
    options = {
        "model": {"path": str(folder / "model"), **({"chat_template": "none"} if stage is dpo else {})},
        "data": {"path": str(path), "stream": how != "in-memory", "validation": VALIDATION, "max_length": 64},
        "train": {"batch_size": 64, "steps": STEPS, "evaluate_every": STEPS},
    }
    config, runtime = kind.model_validate(options), RuntimeOptions(trackers=[], device="cpu")
    stage.run(config, runtime, Run.open(folder / "run", stage.__name__, config, runtime))
    print(json.dumps(figures | {"peak": peak_memory_bytes()}))


def tokenized(place: Path, rows: int) -> Examples[Any]:
    """As many examples of the same 10 tokens, on the disk."""
    row = [TokenSequence([5] * 10, [0.0] + [1.0] * 9, columns={"bytes": 10.0})]
    out = held_out([SplitDraws((Document(text=f"row {n}") for n in range(rows)), 0)], VALIDATION)
    writer = StoreWriter(place, "rows", ["train", "validation"])
    for start in range(0, rows, 10_000):
        held = int(out[start : start + 10_000].sum())
        writer.add("validation", [row] * held)
        writer.add("train", [row] * (min(10_000, rows - start) - held))
        writer.commit({})
    writer.finish()
    found = read_store(place, "rows")
    assert found is not None
    return Examples(found[0]["train"], found[0]["validation"], [])


def make_model(folder: Path) -> None:
    """An untrained checkpoint with a character tokenizer."""
    options = {
        "architecture": {"model_type": "llama", "layers": 1, "width": 16, "heads": 2},
        "tokenizer": {"kind": "character"},
        "data": {"path": str(folder / "few.jsonl"), "max_length": 64},
    }
    write_rows(folder / "few.jsonl", 100)
    pretrain.create_model(PretrainConfig.model_validate(options), folder / "model")


def measure(rows: int, how: str) -> dict[str, float]:
    """Peak resident memory in bytes, seconds and bytes on the disk of one size."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder)
        if how != "tokenized":
            (write_pairs if how == "preferences" else write_rows)(folder / "rows.jsonl", rows)
        command = [sys.executable, __file__, str(rows), "--child", name, f"--{how}"]
        child = subprocess.run(command, stdout=subprocess.PIPE, check=False)
        if child.returncode:
            raise SystemExit(f"the training on {rows:,} rows failed")
        return json.loads(child.stdout.splitlines()[-1])


def main() -> None:
    """Print a line for each size: the growth is over the size before."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", type=int)
    ways = {"stream": "the default", "in-memory": "without data.stream"}
    for how, told in (ways | dict.fromkeys(("tokenized", "preferences"), "see above")).items():
        parser.add_argument(f"--{how}", dest="how", action="store_const", const=how, default="stream", help=told)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        train(arguments.child, arguments.rows[0], arguments.how)
        return
    before: tuple[int, float] | None = None
    print(f"{'rows':>12} {'peak MiB':>9} {'bytes/row more':>15} {'rows/s':>9} {'disk bytes/row':>15}")
    for rows in arguments.rows:
        found = measure(rows, arguments.how)
        more = "" if before is None else f"{(found['peak'] - before[1]) / (rows - before[0]):.1f}"
        speed, disk = rows / found["seconds"], found["disk"] / rows
        print(f"{rows:12,} {found['peak'] / 2**20:9.0f} {more:>15} {speed:9,.0f} {disk:15.0f}", flush=True)
        before = rows, found["peak"]


if __name__ == "__main__":
    main()
