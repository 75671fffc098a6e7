"""`alignkit data split`: records into parts by the hash of their prompts. Does not know how it is run."""

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import accumulate
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from alignkit.data.corpus.execute import Stage
from alignkit.data.corpus.gather import Outcome
from alignkit.data.corpus.jobs import Ending, run_job
from alignkit.data.corpus.rows import ShardReader, shard_writer
from alignkit.data.corpus.shards import Shards
from alignkit.data.corpus.steps import RecordType
from alignkit.data.split import beginning, draw
from alignkit.data.taking import KINDS, Tell
from alignkit.options.corpus import SplitOptions


def split(source: str, out: Path, as_: str | None, format: str, options: SplitOptions, tell: Tell) -> Outcome | None:
    """Write a source's records into <out>/<part>.jsonl; those that begin with one question into one part.

    Returns the account; None where the work was only submitted to Slurm. Raises InputError.
    """

    def plan(shards: Shards, folder: Path) -> tuple[list[Stage], Ending]:
        folders = {name: folder / "parts" / name for name in options.parts}
        steps = [ShardReader(shards.folder), Divide(folders, options.parts, options.seed, KINDS[shards.as_])]
        return [Stage("split", shards.count, steps)], Ending(folders, [])

    files = {name: out / f"{name}.jsonl" for name in options.parts}
    return run_job("split", source, files, as_, format, options, options.work, plan, tell)


class Divide(PipelineStep):
    """Each row into the folder of its part."""

    type = "alignkit"
    name = "split"

    def __init__(self, folders: dict[str, Path], parts: dict[str, float], seed: int, as_: RecordType) -> None:
        super().__init__()
        self.folders, self.seed, self.as_ = folders, seed, as_
        self.ends = dict(zip(parts, accumulate(parts.values()), strict=True))

    def run(self, data: Iterator[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Writes; nothing follows."""
        with ExitStack() as stack:
            writers: dict[str, Any] = {
                name: stack.enter_context(shard_writer(folder)) for name, folder in self.folders.items()
            }
            last = next(reversed(writers))
            for document in data:
                at = draw(beginning(self.as_.model_validate(document.metadata["parsed"])), self.seed)
                part = next((name for name, end in self.ends.items() if at < end), last)
                writers[part].write(document, rank)
                yield document
