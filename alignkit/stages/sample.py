"""Draws answers, has a reward score or a judge compare them, writes the chosen ones as data. It knows no other stage.

Without a model it labels the responses that the data holds. It leaves one file in data/ whose records later
stages read. Killed, it goes on with the next chunk of prompts, and it ends with the same file in any number of
processes, up to rounding where a draw falls on the border of two tokens.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from alignkit.answering import drawn, given
from alignkit.chunks import Row, finish_data, in_chunks
from alignkit.config import InputError
from alignkit.judging import build_comparison
from alignkit.marks import read_text
from alignkit.options.sample import SampleConfig
from alignkit.options.shared import RuntimeOptions
from alignkit.records import Completion, Feedback, Prompt
from alignkit.relabelling import agreement
from alignkit.rewards import build_reward
from alignkit.runs import Run
from alignkit.selection import (
    Candidate,
    Selection,
    best_of_n_kl_bound,
    candidate_of,
    dropped_counts,
    mean_counts,
    mean_drawn,
    row_of,
    select,
)
from alignkit.verdicts import judged, measure_judged, select_judged, summary_judged, wins_of
from reward_models.judge import Compare
from reward_models.scores import Reward, valued


def run(
    config: SampleConfig,
    runtime: RuntimeOptions,
    run: Run,
    reward: Reward | None = None,
    compare: Compare | None = None,
) -> Path:
    """Sample, or take what the data holds, score or compare, select and write; returns the data's folder. `reward` and
    `compare` replace the recipe's reward and judge, for library use."""
    asked = given(config, runtime, run) if config.model is None else drawn(config, config.model, runtime, run)
    accelerator, prompts, judge = asked.accelerator, asked.prompts, config.judge
    held = {"device": accelerator.device, "precision": asked.precision, "token_budget": runtime.token_budget}
    rate = _rating(config, reward, compare, held, runtime.allow_code)

    def make(numbers: list[int], part: list[Prompt]) -> list[Row]:
        rows = rate(part, asked.answers(numbers, part))
        ranks = [asked.ranks[n] for n in numbers] if asked.ranks else []
        return [row | {"ranks": old} for row, old in zip(rows, ranks, strict=True)] if ranks else rows

    def more(rows: list[Row]) -> dict[str, float]:
        played = {} if config.environment is None else mean_counts(rows)
        return played | agreement(rows, _scores_of if judge is None else wins_of)

    def measure(rows: list[Row]) -> dict[str, float]:
        return (_measure(rows) if judge is None else measure_judged(rows)) | more(rows)

    guidelines = None if judge is None else read_text(str(judge.guidelines))
    key = [config.model_dump(mode="json"), guidelines, asked.given]
    worked = in_chunks(prompts, make, measure, run, accelerator, key)
    if judge is None:
        candidates = [
            [candidate_of(one, one["score"], one["parts"]) for one in _with_score(row)] for row in worked.rows
        ]
        chosen = [select(prompt, some, config) for prompt, some in zip(prompts, candidates, strict=True)]
        metrics = summary(worked.rows, candidates, chosen, asked.skipped, config)
    else:
        chosen = [select_judged(prompt, row, config) for prompt, row in zip(prompts, worked.rows, strict=True)]
        metrics = summary_judged(worked.rows, chosen, asked.skipped)
    metrics |= more(worked.rows)
    if not metrics["records"]:
        dropped = {name.removeprefix("dropped/"): n for name, n in metrics.items() if name.startswith("dropped/")}
        drawing = "minimum, max_new_tokens and the reward or judge, or draw more samples"
        labelling = "minimum and the reward" if judge is None else "the judge and its guidelines"
        raise InputError(
            f"sample: none of {len(prompts)} prompts gives a record ({dropped}); look at "
            + (labelling if config.model is None else drawing)
        )
    (name,) = config.files
    files = {name: [record for one in chosen for record in one.records]}
    made = [answer for row in worked.made for answer in row["answers"]]
    throughput = worked.throughput(len(made), sum(answer["tokens"] for answer in made))
    if config.model is None:
        del throughput["tokens_per_second"]
    return finish_data(run, accelerator, files, metrics, throughput)


def _rating(
    config: SampleConfig, reward: Reward | None, compare: Compare | None, held: dict[str, Any], allow_code: bool
) -> Callable[[list[Prompt], list[list[Completion]]], list[Row]]:
    """(prompts, answers to each) -> a row of a chunk for each prompt: its answers with their scores or verdicts."""
    if config.judge is not None:
        judge = compare or build_comparison(config.judge, **held)

        def compared(prompts: list[Prompt], answers: list[list[Completion]]) -> list[Row]:
            return judged(prompts, answers, judge, config.unfinished == "keep")

        return compared
    assert config.reward is not None, "SampleConfig checks it"
    worth, name = reward or build_reward(config.reward, **held, allow_code=allow_code), config.reward.kind

    def rated(_: list[Prompt], answers: list[list[Completion]]) -> list[Row]:
        rows = iter(scored([one for some in answers for one in some], worth, name))
        return [{"answers": [next(rows) for _ in some]} for some in answers]

    return rated


def scored(completions: list[Completion], reward: Reward, name: str) -> list[Row]:
    """Each completion as a row of a chunk, with its whole reward: what of it stands inside is added up. The score is
    None where the reward failed and the recipe skips that."""
    given = valued(completions, reward, name)
    return [
        row_of(completion) | {"score": score, "parts": {part: values[n] for part, values in given.parts.items()}}
        for n, (completion, score) in enumerate(zip(completions, given.whole, strict=True))
    ]


def _with_score(row: Row) -> list[Row]:
    return [answer for answer in row["answers"] if answer["score"] is not None]


def _scores_of(row: Row) -> dict[int, float]:
    """By the places of the answers that have a score."""
    return {place: one["score"] for place, one in enumerate(row["answers"]) if one["score"] is not None}


def _measure(rows: Sequence[Row]) -> dict[str, float]:
    """Of one chunk, for metrics.jsonl."""
    answers = [answer for row in rows for answer in row["answers"]]
    known = [scores for row in rows if (scores := [answer["score"] for answer in _with_score(row)])]
    every = [score for scores in known for score in scores]
    found = {"score": fmean(every), "best_score": fmean(map(max, known))} if known else {}
    return found | {"failed": 1 - len(every) / len(answers)} | mean_drawn(answers)


def summary(
    rows: Sequence[Row],
    candidates: Sequence[Sequence[Candidate]],
    chosen: Sequence[Selection],
    skipped: int,
    config: SampleConfig,
) -> dict[str, float]:
    """What was scored and what became of it: prompts = kept + all dropped/…, and mean scores of all and of the kept.

    best_of_n_kl_bound, nats, bounds the KL of one answer's choice among its n from above; prompts that were dropped
    are not in it. It is no KL.
    """
    answers = [one for some in candidates for one in some]
    asked = sum(len(row["answers"]) for row in rows)
    used = [one.score for selection in chosen for one in selection.used]
    records = [record for selection in chosen for record in selection.records]
    result: dict[str, float] = {
        "prompts": len(candidates) + skipped,
        **dropped_counts(chosen, skipped),
        "answers": asked,
        "answers/failed": asked - len(answers),
        "answers/unfinished": sum(not one.response[-1].finished for one in answers),
    }
    if answers:
        result["score"] = fmean(one.score for one in answers)
    if used:
        result["score_kept"] = fmean(used)
    if config.write == "best" and config.top == 1 and config.model is not None:
        result["best_of_n_kl_bound"] = best_of_n_kl_bound(config.samples)
    if config.write == "pair" and used:
        result["score_gap"] = fmean(best - worst for best, worst in zip(used[::2], used[1::2], strict=True))
    if config.write == "feedback":
        result["good"] = fmean(record.label for record in records if isinstance(record, Feedback)) if records else 0.0
    return result
