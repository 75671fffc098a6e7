"""`alignkit data clean`: HTML, Unicode, personal data, language, rules for web text. Does not know how it is run."""

import inspect
from importlib import import_module
from pathlib import Path
from typing import Any

from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
    LanguageFilter,
)
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.formatters import FTFYFormatter
from datatrove.utils.lid import FastTextLID

from alignkit.config import InputError
from alignkit.data.corpus.execute import Stage
from alignkit.data.corpus.gather import Outcome
from alignkit.data.corpus.jobs import Ending, run_job
from alignkit.data.corpus.rows import ShardReader
from alignkit.data.corpus.shards import Shards
from alignkit.data.corpus.steps import Change, Judge, Mask, Page, Part
from alignkit.data.corpus.words import EnglishWords
from alignkit.data.personal import KINDS as PERSONAL
from alignkit.data.personal import find_personal
from alignkit.data.taking import KINDS, Tell
from alignkit.options.corpus import CleanOptions, LanguageOptions

RULES: dict[str, type[BaseFilter]] = {
    "gopher": GopherQualityFilter,
    "gopher_repetition": GopherRepetitionFilter,
    "c4": C4QualityFilter,
    "fineweb": FineWebQualityFilter,
}
"""datatrove's filters by the names of `quality`."""


def clean(source: str, out: Path, as_: str | None, format: str, options: CleanOptions, tell: Tell) -> Outcome | None:
    """Clean a source's records into `out`; what is removed stands in <out>.removed.jsonl with its reasons.

    Returns the account; None where the work was only submitted to Slurm. Raises InputError.
    """
    words = EnglishWords()  # one for all, since datatrove remembers the words of the last texts
    judges = [*_language(options.language), *(Judge(name, _rules(name, options, words)) for name in options.quality)]

    def plan(shards: Shards, folder: Path) -> tuple[list[Stage], Ending]:
        kept, removed = folder / "kept", folder / "removed"
        steps = [
            ShardReader(shards.folder),
            *_changes(options, shards.as_),
            *judges,
            Part(kept, removed, KINDS[shards.as_]),
        ]
        return [Stage("clean", shards.count, steps)], Ending({"kept": kept}, [removed])

    work, most = options.work, options.most_removed
    beside = () if options.language is None else (options.language.model,)
    return run_job("clean", source, {"kept": out}, as_, format, options, work, plan, tell, most, beside)


def _changes(options: CleanOptions, as_: str) -> list[Any]:
    steps: list[Any] = []
    if options.html != "never" and as_ == "corpus":
        steps.append(Page(options.html == "always"))
    elif options.html == "always":
        raise InputError(f"html: always takes documents only, and these are {as_}; leave it out")
    if options.unicode:
        steps.append(Change("unicode", FTFYFormatter(unescape_html="auto" if as_ == "corpus" else False).format))
    personal = options.personal
    if personal.action != "keep":
        kinds = personal.kinds or [*PERSONAL]
        find_personal("", kinds, personal.region)  # refuses what is not known
        steps.append(Mask(kinds, personal.region, personal.action == "remove"))
    return steps


def _rules(name: str, options: CleanOptions, words: EnglishWords) -> BaseFilter:
    given = options.thresholds.get(name, {})  # pyright: ignore[reportCallIssue, reportArgumentType]
    fields = inspect.signature(RULES[name]).parameters
    known = [field for field in fields if field not in ("exclusion_writer", "language", "self")]
    if unknown := [field for field in given if field not in known]:
        raise InputError(f"thresholds.{name}.{unknown[0]}: unknown key; known here: {', '.join(known)}")
    for field, value in given.items():
        kind = float if isinstance(fields[field].default, int | float) else type(fields[field].default)
        if fields[field].default is not None and not isinstance(value, kind | (int if kind is float else kind)):
            raise InputError(f"thresholds.{name}.{field}: give a {kind.__name__}, not {value!r}")
    return RULES[name](**{"language": words, **given})


class _Languages(FastTextLID):
    """A model of languages that lies here."""

    def __init__(self, path: Path, languages: list[str]) -> None:
        super().__init__(languages)
        self.path = path

    @property
    def model(self) -> Any:
        """The model; a process reads it when it first needs it."""
        if self._model is None:
            self._model = import_module("fasttext.FastText")._FastText(str(self.path))
        return self._model


def _language(options: LanguageOptions | None) -> list[Judge]:
    if options is None:
        return []
    path = Path(options.model)
    if not path.is_file():
        raise InputError(
            f"language.model: there is no file {path}. Fetch lid.176.bin (126 MB) from "
            "https://dl.fbaipublicfiles.com/fasttext/supervised-models/ and give its path"
        )
    models = _Languages(path, options.keep)
    try:
        known = {label.removeprefix("__label__") for label in models.model.get_labels()}
    except ValueError as error:
        raise InputError(f"language.model: {path} is no fastText model: {error}") from error
    if missing := [name for name in options.keep if name not in known]:
        raise InputError(
            f"language.keep: the model {path.name} does not know {missing[0]!r}, but {', '.join(sorted(known)[:20])}"
        )
    models._model = None  # a model does not travel to other processes
    filter = LanguageFilter(options.keep, options.threshold)
    filter.model = models
    return [Judge("language", filter)]
