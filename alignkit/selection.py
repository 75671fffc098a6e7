"""Which of a prompt's scored answers become data: the best, a ranking, a pair, labels. Knows no model and no file."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from alignkit.chunks import Row
from alignkit.environment.tools import COUNTED, counted
from alignkit.options.sample import SampleConfig
from alignkit.records import Comparison, Completion, Demonstration, Feedback, Message, Messages, Prompt, Record


@dataclass(frozen=True, slots=True)
class Candidate:
    """One answer to a prompt, and what it is worth."""

    response: Messages
    """One or more turns that end with the assistant's."""
    score: float
    parts: dict[str, float] = field(default_factory=dict[str, float])
    """What the score is made of, by name."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What one prompt gives."""

    records: tuple[Record, ...]
    used: tuple[Candidate, ...]
    """The answers in the records, in their order."""
    dropped: str | None = None
    """Why there is no record: "failed", "unfinished", "empty", "below_minimum", "tied", "one_answer", "no_verdict"."""


def row_of(completion: Completion) -> Row:
    """An answer as a row of a chunk keeps it: its turns, the last of which may not be finished, tokens and counts."""
    said = (*completion.turns, completion.response)
    return {
        "response": [turn.model_dump(mode="json", exclude_none=True) for turn in said],
        "tokens": len(completion.ids),
        "counts": counted(completion),
    }


def candidate_of(row: Row, score: float, parts: dict[str, float] | None = None) -> Candidate:
    """The answer of such a row."""
    return Candidate(tuple(Message.model_validate(turn) for turn in row["response"]), score, parts or {})


def is_finished(row: Row) -> bool:
    """Whether the answer of such a row was not cut off."""
    return bool(row["response"][-1]["finished"])


def mean_counts(rows: Sequence[Row]) -> dict[str, float]:
    """environment/… of the answers in rows of chunks."""
    counts = [answer["counts"] for row in rows for answer in row["answers"]]
    return {f"environment/{name}": fmean(one[name] for one in counts) for name in COUNTED}


def mean_drawn(answers: Sequence[Row]) -> dict[str, float]:
    """Their mean length, where they were drawn and so have tokens, and the share that the length limit cut."""
    tokens = [answer["tokens"] for answer in answers]
    return {
        **({"tokens": fmean(tokens)} if any(tokens) else {}),
        "unfinished": fmean(not is_finished(answer) for answer in answers),
    }


def best_of(scores: Sequence[float], top: int = 1, minimum: float | None = None) -> list[int]:
    """The places of the `top` highest scores, best first, equal ones as they stand; none below `minimum`.

    With top = 1 and draws from π, this is a draw from best-of-n of π (Stiennon et al. 2020).
    """
    order = sorted(range(len(scores)), key=lambda n: (-scores[n], n))
    return [n for n in order if minimum is None or scores[n] >= minimum][:top]


def ranks_of(scores: Sequence[float]) -> list[int]:
    """The rank of each score: 1 is the highest, equal scores have equal ranks, and no rank is left out."""
    levels = sorted(set(scores), reverse=True)
    return [levels.index(score) + 1 for score in scores]


def best_and_worst(scores: Sequence[float]) -> tuple[int, int] | None:
    """The places of the highest and the lowest score, the first of equal ones; None where all are equal."""
    if len(set(scores)) < 2:
        return None
    return scores.index(max(scores)), scores.index(min(scores))


def best_of_n_kl_bound(n: int) -> float:
    """log n - (n - 1)/n nats: an upper BOUND on KL(best-of-n of π ‖ π), whatever the reward (Beirami et al. 2024,
    https://arxiv.org/abs/2401.01879). The KL itself is below it where answers repeat or tie."""
    return math.log(n) - (n - 1) / n


def select(prompt: Prompt, candidates: Sequence[Candidate], config: SampleConfig) -> Selection:
    """The records that one prompt's answers make, as config.write says; equal answers count once.

    A record's columns are the prompt's, and in "sampled" the score and its parts, unless scores stand in `margins`.
    """
    if not candidates:  # the reward failed on every answer
        return Selection((), (), "failed")
    finished = [one for one in candidates if one.response[-1].finished or config.unfinished == "keep"]
    if not finished:
        return Selection((), (), "unfinished")
    different = _merged(finished)
    if config.write == "best":
        return _best(prompt, different, config)
    if config.write == "feedback":
        assert config.minimum is not None, "SampleConfig checks it"
        labels = [one.score >= config.minimum for one in different]
        records = [
            Feedback(prompt=prompt.messages, response=one.response, label=label, **_common(prompt, one, number))
            for number, (one, label) in enumerate(zip(different, labels, strict=True))
        ]
        return Selection(tuple(records), tuple(different))
    if len(different) < 2:
        return Selection((), (), "one_answer")
    scores = [one.score for one in different]
    places = best_and_worst(scores)
    if places is None:
        return Selection((), (), "tied")
    chosen = [different[n] for n in (places if config.write == "pair" else best_of(scores, len(scores)))]
    return Selection((comparison_of(prompt, chosen),), tuple(chosen))


def _merged(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Equal answers as one, in the place of the first; a reward that is not sure of itself gave it a mean score."""
    alike: list[list[Candidate]] = []
    for one in candidates:
        group = next((group for group in alike if _said(group[0]) == _said(one)), None)
        if group is None:
            alike.append([one])
        else:
            group.append(one)
    return [
        group[0] if len(group) == 1 else replace(group[0], score=math.fsum(one.score for one in group) / len(group))
        for group in alike
    ]


def _said(one: Candidate) -> Messages:
    """The answer, wherever it was cut off."""
    return (*one.response[:-1], one.response[-1].model_copy(update={"finished": True}))


def _best(prompt: Prompt, candidates: Sequence[Candidate], config: SampleConfig) -> Selection:
    said = [one for one in candidates if not one.response[-1].empty]
    if not said:
        return Selection((), (), "empty")
    chosen = [said[n] for n in best_of([one.score for one in said], config.top, config.minimum)]
    records = [
        demonstration(prompt, one.response, **_common(prompt, one, number)) for number, one in enumerate(chosen)
    ]
    return Selection(tuple(records), tuple(chosen), None if records else "below_minimum")


def demonstration(prompt: Prompt, response: Messages, **common: Any) -> Demonstration:
    """The answer, all its turns, as a demonstration; what the assistant said before it is context."""
    context = tuple(
        turn.model_copy(update={"weight": 0.0}) if turn.role == "assistant" else turn for turn in prompt.messages
    )
    return Demonstration(messages=(*context, *response), **common)


def comparison_of(prompt: Prompt, candidates: Sequence[Candidate]) -> Comparison:
    """The answers, best first, ranked by their scores, which are its margins."""
    scores = [one.score for one in candidates]
    parts = {name: [one.parts[name] for one in candidates] for name in candidates[0].parts}
    return Comparison(
        prompt=prompt.messages,
        responses=tuple(one.response for one in candidates),
        ranks=tuple(ranks_of(scores)),
        margins=tuple(scores),
        tools=prompt.tools,
        id=prompt.id,
        columns=prompt.columns | ({"sampled": {"parts": parts}} if parts else {}),
    )


def dropped_counts(chosen: Sequence[Selection], skipped: int) -> dict[str, int]:
    """What became of the prompts, `skipped` of which were over-long: kept, dropped/<why> of each reason, records."""
    dropped = Counter(selection.dropped for selection in chosen if selection.dropped)
    dropped.update({"over_long": skipped} if skipped else {})
    return {
        "kept": sum(bool(selection.records) for selection in chosen),
        **{f"dropped/{reason}": n for reason, n in sorted(dropped.items())},
        "records": sum(len(selection.records) for selection in chosen),
    }


def _common(prompt: Prompt, one: Candidate, number: int) -> dict[str, Any]:
    """What a record of one answer takes from its prompt; ids stay unique where a prompt gives several."""
    name = prompt.id if prompt.id is None or not number else f"{prompt.id}/{number + 1}"
    sampled = {"score": one.score} | ({"parts": one.parts} if one.parts else {})
    return {"tools": prompt.tools, "id": name, "columns": prompt.columns | {"sampled": sampled}}
