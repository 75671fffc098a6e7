"""Completions that wait for their update, and the form in which a checkpoint keeps them. Knows no loss, no model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from accelerate.utils import gather_object
from torch import Tensor

from alignkit.config import InputError
from alignkit.records import Completion
from alignkit.sampling import Sampled, Sampler
from alignkit.scoring import Scored


@dataclass(frozen=True, slots=True)
class Waiting:
    """One rank's part of an update that is still to be trained on."""

    part: Sampled
    readings: dict[str, Tensor]
    """[N, T] or [N]: what was read when they were drawn, off the policy that drew them."""


class Queue:
    """At most one update's completions, as this rank holds them and as a checkpoint does, for all ranks."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler
        self.next: Waiting | None = None
        self.following: Waiting | None = None
        """What waits from the end of the update on that is being trained."""
        self.failure: InputError | None = None
        """Why what was to follow does not."""
        self._kept: list[tuple[dict[str, Any], dict[str, Tensor]]] = []

    def take(self, number: int, total: int, draw: Callable[[int], Waiting]) -> tuple[Waiting, float]:
        """What update `number` of `total` trains on, after the next one's has been drawn; the seconds of sampling."""
        now = draw(number) if self.next is None else self.next
        self.following = draw(number + 1) if number + 1 < total else None
        new = [now if self.next is None else None, self.following]
        return now, sum(one.part.seconds for one in new if one is not None)

    def begin(self, draw: Callable[[], Sampled]) -> Sampled:
        """What an update trains on whose successor a server draws meanwhile. Raises the failure of the one before."""
        failure, self.failure, self.following = self.failure, None, None
        if failure is not None:
            raise failure
        return draw() if self.next is None else self.next.part

    def advance(self) -> None:
        """The update is trained, the next one waits; on every rank at once. A failure before leaves what waits."""
        self.next = self.following
        forms: list[Any] = gather_object([None if self.next is None else _form(self.next)])
        self._kept = [] if None in forms else forms

    def keep(self) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
        """What a checkpoint writes: JSON of each rank, and tensors named by rank."""
        tensors = {f"{rank}/{name}": x for rank, (_, own) in enumerate(self._kept) for name, x in own.items()}
        return [record for record, _ in self._kept], tensors

    def restore(self, records: Sequence[dict[str, Any]], tensors: Mapping[str, Tensor]) -> None:
        """Take back what `keep` gave. Raises InputError where another number of processes wrote it."""
        if len(records) not in (0, self.sampler.ranks):
            raise InputError(
                f"rollouts.ahead: {len(records)} processes left completions in this checkpoint; go on with as many, "
                f"not with {self.sampler.ranks}"
            )
        split: list[dict[str, Tensor]] = [{} for _ in records]
        for key, tensor in tensors.items():
            rank, _, name = key.partition("/")
            split[int(rank)][name] = tensor
        self._kept = list(zip(map(dict, records), split, strict=True))
        self.next = _waiting(*self._kept[self.sampler.rank], self.sampler) if self._kept else None


def _form(waiting: Waiting) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A prompt is kept as its place in the stream: its columns may hold what JSON has no form for."""
    part, worth = waiting.part, waiting.part.worth
    answers = [one.model_dump(mode="json", exclude={"prompt", "columns", "tools"}) for one in part.completions]
    record = {
        "places": part.places, "stream": part.stream, "completions": answers, "seconds": part.seconds,
        "drawn": part.drawn, "metrics": part.metrics,
    }  # fmt: skip
    scores = {"worth.total": worth.total} | ({} if worth.steps is None else {"worth.steps": worth.steps})
    parts = {f"part.{name}": values for name, values in worth.parts.items()}
    return record, {**waiting.readings, **scores, **parts}


def _waiting(record: dict[str, Any], tensors: dict[str, Tensor], sampler: Sampler) -> Waiting:
    prompts = sampler.at(record["stream"])
    asked = [prompt for prompt in prompts for _ in range(sampler.config.samples)]
    completions = [
        Completion(**answer, prompt=prompt.messages, columns=prompt.columns, tools=prompt.tools)
        for prompt, answer in zip(asked, record["completions"], strict=True)
    ]
    parts = {name[5:]: values for name, values in tensors.items() if name.startswith("part.")}
    worth = Scored(tensors["worth.total"], parts, tensors.get("worth.steps"))
    rest = {name: record[name] for name in ("places", "stream", "seconds", "drawn", "metrics")}
    part = Sampled(prompts=prompts, completions=completions, worth=worth, **rest)
    readings = {name: x for name, x in tensors.items() if not name.startswith(("part.", "worth."))}
    return Waiting(part, readings)
