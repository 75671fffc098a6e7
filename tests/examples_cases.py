"""Under torchrun: rank 0 fails while it writes the examples of a stream, and each rank leaves what it was told."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from alignkit.config import Config, InputError, build
from alignkit.examples import read_examples
from alignkit.options.mixture import StreamedDataOptions
from alignkit.options.shared import RuntimeOptions
from alignkit.records import Document
from alignkit.runs import Run


def main(folder: Path) -> None:
    accelerator = Accelerator(cpu=True)
    rank = accelerator.process_index
    options = build(StreamedDataOptions, {"path": str(folder / "texts.jsonl"), "stream": True}, "")
    run = Run.open(folder / "run", "pretrain", Config(), RuntimeOptions(trackers=[]))

    def make(records: Sequence[Any], held_out: bool, first: int) -> Any:
        raise AssertionError("no record is whole")

    try:
        read_examples(options, Document, make, (), run, 0, None)
    except InputError as error:
        (folder / f"told-{rank}").write_text(str(error))
    assert os.environ["WORLD_SIZE"] == "2"
    accelerator.wait_for_everyone()  # a rank that leaves while another still listens is aborted now and then
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
