"""Options of data that is mixed from several sources. Knows no stage, no model and no torch."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Self, cast

from pydantic import Field, model_validator

from alignkit.config import Config
from alignkit.options.shared import DataOptions


class SourceOptions(Config):
    """One of the sources of a mixture."""

    path: str
    """A file or folder of records; in a recipe also "@stage"."""
    weight: float | None = Field(default=None, gt=0.0)
    """Its share of the examples drawn is its weight by the sum of all. Left out of every source: by size."""
    epochs: float | None = Field(default=None, gt=0.0)
    """The most often that each of its examples may be drawn; more is an error before anything is done."""
    name: str = Field(default="", pattern=r"^[\w.-]+$")
    """What it is called in metrics and reports. Left out: the name of the file or folder, without its ending."""
    format: str = "auto"
    """The file's format; "auto" recognises it."""
    split: str | None = None
    """The part of a folder."""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, values: Any) -> Any:
        given: dict[str, Any] = dict(cast(Any, values)) if isinstance(values, Mapping) else {}
        if "name" in given or not isinstance(given.get("path"), str):
            return cast(Any, values)
        last = str(given["path"]).rstrip("/").rpartition("/")[2].removeprefix("@")
        if not last:
            raise ValueError(f"path: {given['path']!r} has no name for its losses to be called by; give a `name`")
        return {**given, "name": re.sub(r"[^\w.-]", "_", last.split(".")[0] or last)}


def check_sources(sources: Sequence[SourceOptions]) -> None:
    """Raises ValueError where one stands twice, two have one name, or only some have weights."""
    names = [source.name for source in sources]
    places = [(source.path, source.split) for source in sources]
    twice = [name for name in names if names.count(name) > 1]
    if len(set(places)) < len(places):
        path = next(path for path, split in places if places.count((path, split)) > 1)
        raise ValueError(f"sources: {path} stands there twice; give it once, with a higher weight")
    if twice:
        raise ValueError(f"sources: two are called {twice[0]!r}; give each a `name` of its own")
    weighted = [source.weight is not None for source in sources]
    if any(weighted) and not all(weighted):
        missing = names[weighted.index(False)]
        raise ValueError(f"sources: {missing} has no weight, and others have; give all a weight, or none")


class MixedDataOptions(DataOptions):
    """Where the records of a training come from: one source, or a mixture of several."""

    sources: list[SourceOptions] | None = Field(default=None, min_length=1)
    """Several sources in place of `path`, each a {path, weight, epochs, name, format, split}."""
    temperature: float = Field(default=1.0, gt=0.0)
    """Without weights, shares are as size^(1/temperature) (Arivazhagan et al. 2019): 1 by size, large all alike."""

    @property
    def mixed(self) -> bool:
        """Whether `sources` are given."""
        return self.sources is not None

    @model_validator(mode="after")
    def _check_mixture(self) -> Self:
        self.only_with(self.sources is not None, "without `sources`", "temperature")
        if self.sources is None:
            return self
        if self.path is not None or self.world is not None:
            raise ValueError("give exactly one of `path` (a file), `sources` (a mixture) and `world` (the generator)")
        for name in ("rows", "format", "split"):
            if getattr(self, name) != DataOptions.model_fields[name].default:
                raise ValueError(
                    f"{name} is for one `path`; " + ("remove it" if name == "rows" else "give it per source")
                )
        check_sources(self.sources)
        self.only_with(self.sources[0].weight is None, "where sources have weights", "temperature")
        return self


class StreamedDataOptions(MixedDataOptions):
    """Where they come from, for stages that need not hold them."""

    stream: bool = False
    """Read records one by one and keep their tokens on the disk, in the run's folder: memory stays flat however many
    there are. `path` may then also be the name of a data set on a hub."""

    @model_validator(mode="after")
    def _check_stream(self) -> Self:
        if self.stream and self.path is None and self.sources is None:
            raise ValueError("stream: the built-in generator makes its records in memory; remove stream")
        if self.stream and self.rows is not None:
            raise ValueError("stream: all records are read, and rows draws some of them; remove one of the two")
        return self


def is_streamed(options: object) -> bool:
    """Whether these are options of data that is to be streamed."""
    return isinstance(options, StreamedDataOptions) and options.stream
