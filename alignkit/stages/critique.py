"""Has a policy answer, criticise its answers by written guidelines, revise them, and writes data. It trains nothing.

The supervised part of constitutional AI (Bai et al. 2022, https://arxiv.org/abs/2212.08073, §3). It knows no other
stage. Killed, it goes on with the next chunk of prompts, and ends with the same files in any number of processes.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias

from alignkit.chunks import Row, finish_data, in_chunks
from alignkit.config import InputError
from alignkit.generate import rollout
from alignkit.guidelines import Guideline, after_examples, drawn, read_examples, read_guidelines, turns_between
from alignkit.models import load_policy
from alignkit.options.critique import CritiqueConfig
from alignkit.options.shared import RuntimeOptions
from alignkit.prepare import open_setting
from alignkit.prompts import load_prompts
from alignkit.records import Comparison, Completion, Message, Messages, Prompt, Record
from alignkit.runs import Run
from alignkit.selection import demonstration

Speak: TypeAlias = Callable[[int, list[int], list[Prompt]], list[Completion]]
"""(turn, places, prompts) -> what the policy says to each; turn and place decide the draw."""


def run(config: CritiqueConfig, runtime: RuntimeOptions, run: Run) -> Path:
    """Answer, criticise, revise and write; returns the folder of the data."""
    guidelines, examples = read_guidelines(config.guidelines), read_examples(config.guidelines)
    setting = open_setting(config.model, runtime)
    accelerator, format, budget = setting.accelerator, setting.format, runtime.token_budget
    more = turns_between(format, guidelines, config.max_new_tokens, examples)
    prompts, skipped = load_prompts(config, format, run, runtime, more)
    held = {"device": accelerator.device, "precision": setting.precision}
    policy = load_policy(config.model, trainable=False, format=format, **held).eval()

    def make(numbers: list[int], part: list[Prompt]) -> list[Row]:
        def speak(turn: int, places: list[int], asked: list[Prompt]) -> list[Completion]:
            return rollout(
                policy,
                format,
                asked,
                seed=config.seed,
                update=turn,
                max_new_tokens=config.max_new_tokens,
                temperature=config.temperature,
                token_budget=budget,
                numbers=[numbers[place] for place in places],
            )

        by = [drawn(guidelines, config.seed, number, config.rounds) for number in numbers]
        with accelerator.autocast():
            return revised(part, by, speak, keep_unfinished=config.unfinished == "keep", examples=examples)

    requests = [[one.critique, one.revision] for one in guidelines]
    key = [config.model_dump(mode="json"), requests, [turn.content for turn in examples]]
    worked = in_chunks(prompts, make, _measure, run, accelerator, key)
    files = records_of(prompts, worked.rows, config)
    metrics = summary(worked.rows, files, skipped)
    if not all(files.values()):
        found = {name: len(records) for name, records in files.items()}
        raise InputError(f"critique: {len(prompts)} prompts gave {found} ({metrics}); look at max_new_tokens")
    throughput = worked.throughput(len(worked.made), sum(row["tokens"] for row in worked.made))
    return finish_data(run, accelerator, files, metrics, throughput)


def revised(
    prompts: Sequence[Prompt],
    guidelines: Sequence[Sequence[Guideline]],
    speak: Speak,
    keep_unfinished: bool = False,
    examples: Messages = (),
) -> list[Row]:
    """A row for each prompt: its answer, what each of its guidelines, one a round, made of it, and why it was dropped.

    A round sees the worked examples, the prompt, the latest answer, and its own critique: earlier critiques are behind
    it. A turn that says nothing or calls a tool, and one that was cut off unless `keep_unfinished`, ends its
    conversation.
    """
    rows: list[Row] = [{"answer": None, "rounds": [], "finished": [], "dropped": None, "tokens": 0} for _ in prompts]

    def turn(number: int, asked: dict[int, Messages]) -> dict[int, Message]:
        places = list(asked)
        given = [prompts[place].model_copy(update={"messages": asked[place]}) for place in places]
        said: dict[int, Message] = {}
        for place, completion in zip(places, speak(number, places, given) if given else [], strict=True):
            rows[place]["tokens"] += len(completion.ids)
            rows[place]["dropped"] = _fault(completion, keep_unfinished)
            if rows[place]["dropped"] is None:
                said[place] = completion.response.model_copy(update={"reasoning": None})
        return said

    latest = turn(0, {place: prompt.messages for place, prompt in enumerate(prompts)})
    for place, answer in latest.items():
        rows[place]["answer"] = answer.content
        rows[place]["finished"].append(answer.finished)
    for number in range(max(map(len, guidelines), default=0)):
        by = {place: guidelines[place][number] for place in latest}
        asked = {
            place: (*after_examples(examples, prompts[place].messages), latest[place], _user(one.critique))
            for place, one in by.items()
        }
        critiques = turn(2 * number + 1, asked)
        asked = {place: (*asked[place], said, _user(by[place].revision)) for place, said in critiques.items()}
        latest = turn(2 * number + 2, asked)
        for place, answer in latest.items():
            told = {"guideline": by[place].critique, "critique": critiques[place].content, "revision": answer.content}
            rows[place]["rounds"].append(told)
            rows[place]["finished"].append(answer.finished)
    return rows


def _fault(completion: Completion, keep_unfinished: bool) -> str | None:
    if completion.response.tool_calls:
        return "tool_call"
    if not completion.response.content.strip():
        return "empty"
    return None if completion.finished or keep_unfinished else "unfinished"


def _user(text: str) -> Message:
    return Message(role="user", content=text)


def records_of(prompts: Sequence[Prompt], rows: Sequence[Row], config: CritiqueConfig) -> dict[str, list[Record]]:
    """The records of each file that config.write names; the column "critique" holds how an answer came about."""
    files: dict[str, list[Record]] = {name: [] for name in config.files}
    for prompt, row in zip(prompts, rows, strict=True):
        if row["dropped"] is not None:
            continue
        columns = prompt.columns | {"critique": {"answer": row["answer"], "rounds": row["rounds"]}}
        common: dict[str, Any] = {"tools": prompt.tools, "id": prompt.id, "columns": columns}
        first = Message(role="assistant", content=row["answer"], finished=row["finished"][0])
        last = Message(role="assistant", content=_revision(row), finished=row["finished"][-1])
        if "demonstrations" in files:
            files["demonstrations"].append(demonstration(prompt, (last,), **common))
        if "comparisons" in files and first.content != last.content:
            both = Comparison(prompt=prompt.messages, responses=((last,), (first,)), ranks=(1, 2), **common)
            files["comparisons"].append(both)
    return files


def _revision(row: Row) -> str:
    return row["rounds"][-1]["revision"]


def _measure(rows: Sequence[Row]) -> dict[str, float]:
    """Of one chunk, for metrics.jsonl."""
    kept = [row for row in rows if row["dropped"] is None]
    found = {"dropped": 1 - len(kept) / len(rows), "tokens": fmean(row["tokens"] for row in rows)}
    return found | ({"unchanged": fmean(_revision(row) == row["answer"] for row in kept)} if kept else {})


def summary(rows: Sequence[Row], files: dict[str, list[Record]], skipped: int) -> dict[str, float]:
    """What became of the prompts: prompts = kept + all dropped/…; an unchanged answer is no comparison."""
    dropped = Counter(row["dropped"] for row in rows if row["dropped"])
    dropped.update({"over_long": skipped} if skipped else {})
    unchanged = sum(row["dropped"] is None and _revision(row) == row["answer"] for row in rows)
    if "demonstrations" not in files:
        dropped.update({"unchanged": unchanged} if unchanged else {})
    return {
        "prompts": len(rows) + skipped,
        "kept": len(rows) + skipped - dropped.total(),
        **{f"dropped/{reason}": n for reason, n in sorted(dropped.items())},
        **{name: len(records) for name, records in files.items()},
        "unchanged": unchanged,
    }
