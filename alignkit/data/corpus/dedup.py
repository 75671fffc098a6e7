"""`alignkit data dedup`: overlap with other data, equal records, near duplicates. Does not know how it is run."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document as Row
from datatrove.pipeline.decont import NGramsDecontConfig, NGramsDecontFilter
from datatrove.pipeline.dedup import (
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.dedup.exact_dedup import (
    ExactDedupConfig,
    ExactDedupFilter,
    ExactDedupSignature,
    ExactFindDedups,
)
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.utils.hashing import create_hash_func
from datatrove.utils.text import TextNormConfig, ngrams, simplify_text

from alignkit.config import InputError
from alignkit.data.checking.items import fingerprint
from alignkit.data.corpus.execute import Stage
from alignkit.data.corpus.gather import Outcome
from alignkit.data.corpus.jobs import Ending, run_job
from alignkit.data.corpus.rows import Compared, ShardReader, shard_writer
from alignkit.data.corpus.shards import Shards
from alignkit.data.corpus.steps import Judge, Part
from alignkit.data.corpus.words import SpacedWords
from alignkit.data.formats import convert
from alignkit.data.split import beginning
from alignkit.data.stream import entries_of, kind_at
from alignkit.data.taking import KINDS, Tell
from alignkit.data.texts import joined, texts_of, whole
from alignkit.options.corpus import DedupOptions, MinhashOptions
from alignkit.records import Document, Prompt, Record


def dedup(source: str, out: Path, as_: str | None, format: str, options: DedupOptions, tell: Tell) -> Outcome | None:
    """Write to `out` the records that neither overlap with `against` nor repeat one another.

    What is removed stands in <out>.removed.jsonl with its reasons. Returns the account; None where the work was only
    submitted to Slurm. Raises InputError.
    """
    for path in options.against:
        if not Path(path).exists():
            raise InputError(f"against: there is no such file or folder: {path}")
    if not (options.against or options.exact or options.minhash):
        raise InputError("nothing is to be done: `exact` is false, `minhash` null and `against` empty")

    def plan(shards: Shards, folder: Path) -> tuple[list[Stage], Ending]:
        stages: list[Stage] = []
        removed: list[Path] = []
        rows = shards.folder
        if options.against:
            stages += _overlap(shards, folder / "overlap", options)
            rows, removed = folder / "overlap/kept", [*removed, folder / "overlap/removed"]
        prompt = partial(prompt_of, KINDS[shards.as_]) if options.by == "prompt" else None
        if options.exact:
            stages += _exact(prompt or whole, rows, folder / "exact", shards.count)
            rows, removed = folder / "exact/kept", [*removed, folder / "exact/removed"]
        if options.minhash:
            stages += _minhash(prompt or joined, rows, folder / "minhash", shards.count, options.minhash)
            rows, removed = folder / "minhash/kept", [*removed, folder / "minhash/removed"]
        return stages, Ending({"kept": rows}, removed)

    work, most, beside = options.work, options.most_removed, tuple(options.against)
    return run_job("dedup", source, {"kept": out}, as_, format, options, work, plan, tell, most, beside)


def prompt_of(as_: type[Record], row: dict[str, Any]) -> str:
    """The texts before a record's last answers; a document's whole text."""
    return joined(row if as_ is Document else convert(as_.model_validate(row), Prompt).model_dump())


# ------------------------------------------------------------------------------------------- overlap with other data


def _overlap(shards: Shards, folder: Path, options: DedupOptions) -> list[Stage]:
    # Numbers stay as they are: two sums with other numbers are two questions.
    config = NGramsDecontConfig(options.overlap_words, norm_config=TextNormConfig(norm_numbers=False))
    index = folder / "index"
    if not (index / "done").is_file():
        _write_index(index, options.against, config)
    as_ = KINDS[shards.as_]
    judges = [
        Judge("prompt", _SamePrompt(index, as_)),
        Judge("overlap", _Overlap(str(index), config, language=SpacedWords())),
    ]
    return [
        Stage(
            "overlap",
            shards.count,
            [ShardReader(shards.folder), *judges, Part(folder / "kept", folder / "removed", as_)],
        )
    ]


def _write_index(folder: Path, against: list[str], config: NGramsDecontConfig) -> None:
    """The runs of words of each set, as datatrove's filter reads them, and the hashes of its prompts."""
    folder.mkdir(parents=True, exist_ok=True)
    words, hashed = SpacedWords(), create_hash_func(config.hash_config)
    for number, path in enumerate(against):
        runs: set[int] = set()
        prompts: set[int] = set()
        for entry in entries_of(path, KINDS[kind_at(path)]):
            if entry.fault:
                raise InputError(
                    f"against: {entry.source.name}:{entry.line}: {entry.fault[:300]}. What cannot be read cannot be "
                    "kept out; make records of it with `alignkit data import` first"
                )
            for record in entry.records:
                prompts.add(_hash(record))
                for text in texts_of(record):
                    found = ngrams(words.word_tokenize(simplify_text(text, config.norm_config)), config.n_grams)
                    runs.update(hashed(" ".join(run)) for run in found)
        if not prompts:
            raise InputError(f"against: {path} holds no record")
        np.array([*runs], dtype=config.hash_config.np_descr).tofile(folder / f"{number}.index.hashes")
        np.array([*prompts], dtype=np.uint64).tofile(folder / f"{number}.prompts")
    (folder / "names").write_text("\n".join(against), encoding="utf-8")
    (folder / "done").touch()


def _hash(record: Record) -> int:
    return fingerprint(beginning(record))


class _SamePrompt(BaseFilter):
    """Removes records that begin with the same question as one of the other sets."""

    name = "same prompt"

    def __init__(self, index: Path, as_: type[Record]) -> None:
        super().__init__()
        self.index, self.as_ = index, as_
        self.prompts: dict[int, str] | None = None

    def filter(self, doc: Row) -> bool | tuple[bool, str]:
        """(False, the set) where one of it begins alike."""
        if self.prompts is None:
            names = (self.index / "names").read_text(encoding="utf-8").split("\n")
            files = [np.fromfile(self.index / f"{number}.prompts", dtype=np.uint64) for number in range(len(names))]
            self.prompts = {int(one): name for name, file in zip(names, files, strict=True) for one in file}
        found = self.prompts.get(_hash(self.as_.model_validate(doc.metadata["parsed"])))
        return True if found is None else (False, found)


class _Overlap(NGramsDecontFilter):
    """datatrove's filter, which also says where and what it found."""

    def filter(self, doc: Row) -> bool | tuple[bool, str]:
        """(False, the set) where the document shares a run of words with it."""
        if super().filter(doc) is True:
            return True
        doc.metadata["detail"] = doc.metadata.pop("contaminated_ngram")
        names = (Path(self.index_folder.path) / "names").read_text(encoding="utf-8").split("\n")
        return False, names[int(doc.metadata.pop("contaminated_task"))]


# -------------------------------------------------------------------------------------------------------- duplicates


def _text(document: Row) -> str:
    return document.text


def _priority(document: Row) -> int:
    """The first of equals stays: of the earliest shard, and there the first row."""
    return max(1, 65535 - document.metadata["shard"])


def _exact(compared: Compared, rows: Path, folder: Path, count: int) -> list[Stage]:
    config = ExactDedupConfig(content_getter=_text, document_priority=_priority)
    signatures, found = str(folder / "signatures"), str(folder / "found")
    filter = ExactDedupFilter(
        found, config, shard_writer(folder / "removed", ("exact", "equal to another record", ""))
    )
    return [
        Stage("exact_hash", count, [ShardReader(rows, compared), ExactDedupSignature(signatures, config)]),
        Stage("exact_find", 1, [ExactFindDedups(signatures, found, config)]),
        Stage("exact_part", count, [ShardReader(rows, compared), filter, shard_writer(folder / "kept")]),
    ]


def _minhash(compared: Compared, rows: Path, folder: Path, count: int, options: MinhashOptions) -> list[Stage]:
    norm = TextNormConfig(norm_numbers=not options.numbers)
    config = MinhashConfig(options.words, options.bands, options.rows, norm_config=norm)
    hashes, pairs, groups = (str(folder / name) for name in ("hashes", "pairs", "groups"))
    removed = shard_writer(folder / "removed", ("minhash", "near another record", ""))
    filter = MinhashDedupFilter(groups, exclusion_writer=removed, load_cluster_ids=True)
    return [
        Stage(
            "minhash_hash", count, [ShardReader(rows, compared), MinhashDedupSignature(hashes, config, SpacedWords())]
        ),
        Stage("minhash_pair", options.bands, [MinhashDedupBuckets(hashes, pairs, config=config)]),
        Stage("minhash_group", 1, [MinhashDedupCluster(pairs, groups, config, save_cluster_id=True)]),
        Stage("minhash_part", count, [ShardReader(rows, compared), filter, shard_writer(folder / "kept")]),
    ]
