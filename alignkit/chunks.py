"""Work on prompts that survives a kill: in chunks, each rank its share, until data is written. Knows not what work."""

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from accelerate import Accelerator
from accelerate.utils import gather_object

from alignkit.config import content_hash
from alignkit.data.write import write_records
from alignkit.lineage import atomic_write
from alignkit.progress import peak_memory_bytes, progress
from alignkit.records import Prompt, Record
from alignkit.runs import Run

Row: TypeAlias = dict[str, Any]
"""What the work on one prompt gave, as JSON knows it."""

CHUNK = 64
"""Prompts that are worked on, and lost in a kill, together. The result does not depend on it."""


@dataclass(frozen=True, slots=True)
class Worked:
    """The whole work."""

    rows: list[Row]
    """One row for each prompt, in order."""
    made: list[Row]
    """Those of them that this start made; the others lay there."""
    seconds: float
    """What making them took."""

    def throughput(self, examples: int, tokens: int) -> dict[str, float]:
        """Of what `made` holds."""
        return {"examples_per_second": examples / self.seconds, "tokens_per_second": tokens / self.seconds}


def in_chunks(
    prompts: Sequence[Prompt],
    make: Callable[[list[int], list[Prompt]], list[Row]],
    measure: Callable[[list[Row]], dict[str, float]],
    run: Run,
    accelerator: Accelerator,
    key: Any,
) -> Worked:
    """`make(numbers, prompts)` gives a row for each; it is called with every prompt once, over all ranks and starts.

    `key` is all that the rows depend on besides the prompts: rows of another key are made anew. Each chunk's
    `measure` is logged, those of earlier starts again. Rows must not depend on which prompts are made together.
    """
    folder = run.directory / "chunks"
    key = content_hash([key, [prompt.model_dump(mode="json") for prompt in prompts]])
    numbers = range(len(prompts))
    parts = [numbers[start : start + CHUNK] for start in range(0, len(prompts), CHUNK)]
    known = [_read(_file(folder, part), key) for part in parts]
    # No rank writes before all have looked.
    accelerator.wait_for_everyone()
    rows: list[Row] = []
    made: list[Row] = []
    started = time.perf_counter()
    with progress(run.directory.name, len(parts), shown=run.is_main) as advance:
        for place, (part, found) in enumerate(zip(parts, known, strict=True), 1):
            if found is None:
                found = _made(prompts, part, make, accelerator)
                made += found
                if run.is_main:
                    text = json.dumps({"key": key, "rows": found}, ensure_ascii=False)
                    atomic_write(_file(folder, part), text + "\n")
            rows += found
            measured = measure(found)
            run.log(place, measured)
            advance(place, measured)
    return Worked(rows, made, time.perf_counter() - started)


def finish_data(
    run: Run,
    accelerator: Accelerator,
    files: Mapping[str, Sequence[Record]],
    metrics: Mapping[str, float],
    throughput: Mapping[str, float],
) -> Path:
    """Write each file's records by its name, finish the run with them as its artifact, and forget the chunks."""
    folder = run.directory / "data"
    if run.is_main:
        for name, records in files.items():
            write_records(folder / f"{name}.jsonl", records)
    accelerator.wait_for_everyone()
    run.finish(metrics, throughput, peak_memory_bytes(accelerator.device), folder)
    if run.is_main:
        shutil.rmtree(run.directory / "chunks", ignore_errors=True)
    return folder


def _made(
    prompts: Sequence[Prompt],
    part: range,
    make: Callable[[list[int], list[Prompt]], list[Row]],
    accelerator: Accelerator,
) -> list[Row]:
    """The rows of one chunk, on every rank."""
    mine = list(part[accelerator.process_index :: accelerator.num_processes])
    rows = make(mine, [prompts[n] for n in mine]) if mine else []
    gathered: list[tuple[int, Row]] = gather_object(list(zip(mine, rows, strict=True)))
    # Through JSON, so that a row just made is what it will be when it is read again.
    return [json.loads(json.dumps(row)) for _, row in sorted(gathered, key=lambda one: one[0])]


def _file(folder: Path, part: range) -> Path:
    return folder / f"{part.start:08d}.json"


def _read(path: Path, key: str) -> list[Row] | None:
    if not path.is_file():
        return None
    held = json.loads(path.read_text(encoding="utf-8"))
    return held["rows"] if held["key"] == key else None
