"""Under torchrun or alone: the reference of streamed preferences, as each rank reads it."""

import json
import sys
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from alignkit import reference
from alignkit.config import Config
from alignkit.models import load_policy
from alignkit.options.shared import ModelOptions, RuntimeOptions
from alignkit.reference import with_reference
from alignkit.runs import Run
from alignkit.store import StoreWriter, read_store
from alignkit.trie import TokenSequence


def columns(folder: Path, accelerator: Accelerator, run: Run) -> list[list[float]]:
    """[11 * 2] of each sequence, what its tokens have."""
    store = run.directory / "examples.sqlite"
    if run.is_main:
        pairs = [[TokenSequence([7, 8, n, last], [0.0, 0.0, 1.0, 1.0]) for last in (3, 4)] for n in range(10, 21)]
        writer = StoreWriter(store, "pairs", ["train 0"])
        writer.add("train 0", pairs)
        writer.commit({})
        writer.finish()
    accelerator.wait_for_everyone()
    found: Any = read_store(store, "pairs")
    policy = load_policy(ModelOptions(path=str(folder / "base")))
    (train,) = with_reference(policy, [found[0]["train 0"]], 4096, accelerator, run)
    return [list(sequence.token_columns["reference"]) for example in train for sequence in example]


def main(folder: Path) -> None:
    accelerator = Accelerator(cpu=True)
    run = Run.open(folder / "run", "dpo", Config(), RuntimeOptions(trackers=[]))
    reference.CHUNK = 5  # the last chunk has one example, and a rank none of it
    found = columns(folder, accelerator, run)
    (folder / f"reference-{accelerator.process_index}.json").write_text(json.dumps(found))
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
