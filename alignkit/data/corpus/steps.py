"""The steps of cleaning as datatrove's: change texts, tag what is to be removed, part the tagged. Knows no options."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.extractors import Trafilatura
from datatrove.pipeline.extractors.base import ExtractorSandbox
from datatrove.pipeline.filters.base_filter import BaseFilter, get_filter_result
from pydantic import ValidationError

from alignkit.data.corpus.rows import shard_writer
from alignkit.data.personal import find_personal, mask_personal
from alignkit.data.texts import joined, mapped, texts_in
from alignkit.data.turns import first_fault
from alignkit.records import Record

Rows = Iterator[Document]
RecordType = type[Record]
HTML_SECONDS = 10.0
"""Longest time that one page may take."""


class Change(PipelineStep):
    """Replaces every text of a record."""

    type = "alignkit"

    def __init__(self, name: str, change: Callable[[str], str]) -> None:
        self.name = name
        super().__init__()
        self.change = change

    def run(self, data: Rows, rank: int = 0, world_size: int = 1) -> Rows:
        """Marks the rows that it changes."""
        for document in data:
            _replace(document, self.name, mapped(document.metadata["parsed"], self.change))
            yield document


class Mask(PipelineStep):
    """Personal data in every text of a record: replaced and counted, or the record tagged."""

    type = "alignkit"
    name = "personal"

    def __init__(self, kinds: list[str], region: str | None, remove: bool) -> None:
        super().__init__()
        self.kinds, self.region, self.remove = kinds, region, remove

    def run(self, data: Rows, rank: int = 0, world_size: int = 1) -> Rows:
        """Counts what it masks, by kind."""
        for document in data:
            if self.remove:
                found = {
                    one.kind
                    for text in texts_in(document.metadata["parsed"], columns=True)
                    for one in self._find(text)
                }
                document.metadata["tags"] += [(self.name, kind, "") for kind in sorted(found)]
            else:
                self._mask_all(document)
            yield document

    def _find(self, text: str) -> Any:
        return find_personal(text, self.kinds, self.region)

    def _mask_all(self, document: Document) -> None:
        masked: Counter[str] = Counter()
        given: dict[tuple[str, str], str] = {}

        def mask(text: str) -> str:
            text, counts = mask_personal(text, self.kinds, self.region, given=given)
            masked.update(counts)
            return text

        _replace(document, self.name, mapped(document.metadata["parsed"], mask))
        document.metadata["masked"] = dict(masked)


class Page(PipelineStep):
    """The main text of HTML pages, by trafilatura in a process of its own, since some pages never end."""

    type = "alignkit"
    name = "html"

    def __init__(self, always: bool) -> None:
        super().__init__()
        self.always = always

    def run(self, data: Rows, rank: int = 0, world_size: int = 1) -> Rows:
        """Tags pages without a text, and those that take too long."""
        extractor = Trafilatura(timeout=HTML_SECONDS)
        with ExtractorSandbox(timeout=HTML_SECONDS) as sandbox:
            for document in data:
                if self.always or is_page(document.text):
                    try:
                        text = sandbox.process_document(document.text, extractor.extract)
                    except (TimeoutError, EOFError) as error:
                        document.metadata["tags"].append((self.name, f"not read: {type(error).__name__}", ""))
                    else:
                        if text:
                            _replace(document, self.name, {**document.metadata["parsed"], "text": text})
                        else:
                            document.metadata["tags"].append((self.name, "no main text", ""))
                yield document


class Judge(PipelineStep):
    """One of datatrove's filters, which tags instead of removing; what it cuts out of a document is cut."""

    type = "alignkit"

    def __init__(self, name: str, filter: BaseFilter) -> None:
        self.name = name
        super().__init__()
        self.filter = filter

    def run(self, data: Rows, rank: int = 0, world_size: int = 1) -> Rows:
        """A filter that fails on a row tags it with its error."""
        for document in data:
            before = document.text
            try:
                kept, reason = get_filter_result(self.filter.filter(document))
            except (MemoryError, OSError):
                raise
            except Exception as error:  # one strange text must not end the work on all others
                kept, reason = False, f"failed: {type(error).__name__}"
            if not kept:
                document.metadata["tags"].append((self.name, reason or self.name, document.metadata.pop("detail", "")))
            elif document.text != before and "text" in document.metadata["parsed"]:
                _replace(document, self.name, {**document.metadata["parsed"], "text": document.text})
            if not kept or "text" not in document.metadata["parsed"]:
                document.text = before
            yield document


class Part(PipelineStep):
    """Ends a pipeline: rows without a tag into one folder, the others into another."""

    type = "alignkit"
    name = "part"

    def __init__(self, kept: Path, removed: Path, as_: RecordType) -> None:
        super().__init__()
        self.kept, self.removed, self.as_ = kept, removed, as_

    def run(self, data: Rows, rank: int = 0, world_size: int = 1) -> Rows:
        """A changed row that is no record any more is tagged too."""
        with shard_writer(self.kept) as kept, shard_writer(self.removed) as removed:
            for document in data:
                if document.metadata["changed"]:
                    try:
                        self.as_.model_validate(document.metadata["parsed"])
                    except ValidationError as error:
                        document.metadata["tags"].append(("left over", first_fault(error), ""))
                (removed if document.metadata["tags"] else kept).write(document, rank)
                yield document


def is_page(text: str) -> bool:
    """True where a text begins as an HTML page does."""
    head = text[:1000].lstrip().lower()
    return head.startswith("<") and any(mark in head for mark in ("<!doctype html", "<html", "<head", "<body"))


def _replace(document: Document, step: str, record: dict[str, Any]) -> None:
    if record != document.metadata["parsed"]:
        document.metadata["parsed"] = record
        document.metadata["changed"].append(step)
        document.text = joined(record) or " "
