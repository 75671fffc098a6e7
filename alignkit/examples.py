"""From the records of a stage's sources to its examples, and the mixture of them. Knows no token and no loss."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic

from alignkit.batches import Example
from alignkit.config import InputError
from alignkit.data.load import load_parts, places_of
from alignkit.data.placed import placed
from alignkit.examples_stored import Make, R, stored_examples
from alignkit.mixture import Mixture, draws_of
from alignkit.options.mixture import MixedDataOptions, SourceOptions, is_streamed
from alignkit.options.shared import DataOptions
from alignkit.runs import Run

Cut = Callable[[Sequence[Example]], Sequence[Example]]
"""A source's examples -> those that an epoch goes through in their place."""


@dataclass(frozen=True, slots=True)
class Examples(Generic[R]):
    """What a stage trains on and validates with."""

    train: Sequence[Example]
    validation: Sequence[Example]
    held_out: Sequence[R]
    """The records of `validation`; none where they were streamed."""

    def sizes(self) -> dict[str, int]:
        """How many there are, as the log names it; of a mixture also by source, and how many an epoch draws."""
        found: dict[str, int] = {}
        for side, examples in (("train", self.train), ("validation", self.validation)):
            found[f"data/{side}"] = len(examples)
            if isinstance(examples, Mixture):
                named = zip(examples.names, examples.sizes, strict=True)
                found |= {f"data/{side}/{name}": size for name, size in named}
                found |= {f"data/draws/{name}": n for name, n in zip(examples.names, examples.draws, strict=False)}
        return found


def read_examples(
    options: DataOptions,
    kind: type[R],
    make: Make[R],
    counters: Sequence[Counter[str]],
    run: Run,
    seed: int,
    tokens: Any,
    cut: Cut | None = None,
) -> Examples[R]:
    """The examples that `make` makes of all records; `counters` are what it counts in. With `cut`, those to train on
    are what it makes of each source's.

    With data.stream, they are written to the run's folder by rank 0, and read from there by all: a killed run goes on
    where it was, and one that has them all reads no record again. `tokens` is all that decides, beside the options,
    what `make` makes, such as the tokenizer's vocabulary. Raises InputError.
    """

    def made(records: Sequence[R], held_out: bool, first: int) -> Sequence[Example | None]:
        return placed(options, records, lambda some: make(some, held_out, first))

    held_out: list[R] = []
    if is_streamed(options):
        train, validation, sources = stored_examples(options, kind, made, counters, run, seed, tokens)
    else:
        parts, sources = load_parts(options, kind, seed)
        train, validation = [], []
        for part in parts:
            train.append([e for e in made(list(part.train), False, 0) if e is not None])
            records = list(part.validation)
            both = [(r, e) for r, e in zip(records, made(records, True, 0), strict=True) if e is not None]
            validation.append([e for _, e in both])
            held_out += [r for r, _ in both]
    run.add_data(sources)
    return Examples(*_mixed(options, train, validation, cut), held_out)


def _mixed(
    options: DataOptions,
    train: Sequence[Sequence[Example]],
    validation: Sequence[Sequence[Example]],
    cut: Cut | None = None,
) -> tuple[Sequence[Example], Sequence[Example]]:
    """The examples of all sources as `options` mixes them. Raises InputError where a source has none to train on."""
    places = [place for place in places_of(options) if isinstance(place, SourceOptions)]
    names = [place.name for place in places] or [""]
    for name, part in zip(names, train, strict=True):
        if not part:
            of = f" of {name}" if name else ""
            raise InputError(f"data: no training record{of} is left; look at data.max_length and data.over_long")
    train = train if cut is None else [cut(part) for part in train]
    if not isinstance(options, MixedDataOptions) or not places:
        return train[0], validation[0]
    weights = [place.weight for place in places if place.weight is not None]
    draws = draws_of(names, [len(part) for part in train], weights or None, options.temperature)
    return Mixture(names, train, draws, [place.epochs for place in places]), Mixture(names, validation)
