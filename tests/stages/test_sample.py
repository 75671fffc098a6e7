"""The sample stage on a tiny model: what it writes against plain rollouts and plain counting, kills, processes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sample_cases import (
    PROMPTS,
    QUIET,
    PowerCut,
    critiquing,
    draws,
    judge,
    letters,
    prepare,
    sampling,
    start,
    texts_of,
    written,
)

from alignkit import chunks
from alignkit.config import InputError
from alignkit.data.read import read
from alignkit.records import Comparison, Completion, Demonstration, Feedback, Prompt, Scores
from alignkit.runs import Run, read_metrics
from reward_models.scores import RewardFailure

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("sample"))


@pytest.fixture(scope="module")
def drawn(folder: Path) -> list[tuple[Prompt, list[Completion]]]:
    return draws(folder)


def count(text: str) -> int:
    return sum(text.count(letter) for letter in "abcde")


def test_best_writes_the_first_answer_with_the_most_letters(
    folder: Path, tmp_path: Path, drawn: list[tuple[Prompt, list[Completion]]]
) -> None:
    run = start(tmp_path / "run", sampling(folder))
    records = read(tmp_path / "run/data/demonstrations.jsonl", Demonstration).records
    assert len(records) == PROMPTS
    for record, (prompt, answers) in zip(records, drawn, strict=True):
        best = max(filter(str.strip, texts_of(answers)), key=count)
        assert record.messages[:-1] == prompt.messages and record.messages[-1].content == best
        kinds = float(len(set(best) & set("abcde")))
        sampled = {"score": float(count(best)), "parts": {"kinds": kinds}}
        assert (record.id, record.columns) == (prompt.id, prompt.columns | {"sampled": sampled})
    metrics = run.record.metrics
    scores = [count(text) for _, answers in drawn for text in texts_of(answers)]
    assert metrics["score"] == pytest.approx(sum(scores) / len(scores))
    assert metrics["score_kept"] == pytest.approx(sum(count(r.messages[-1].content) for r in records) / PROMPTS)
    assert metrics["best_of_n_kl_bound"] == pytest.approx(1.6094379 - 0.8, abs=1e-6)
    assert (metrics["prompts"], metrics["kept"], metrics["answers"]) == (PROMPTS, PROMPTS, 5 * PROMPTS)
    assert not (tmp_path / "run/chunks").exists()


def test_rejection_counts_what_it_leaves_out(
    folder: Path, tmp_path: Path, drawn: list[tuple[Prompt, list[Completion]]]
) -> None:
    metrics = start(tmp_path / "run", sampling(folder, minimum=4)).record.metrics
    kept = [prompt.id for prompt, answers in drawn if max(map(count, texts_of(answers))) >= 4]
    assert 0 < len(kept) < PROMPTS
    assert [r.id for r in read(tmp_path / "run/data/demonstrations.jsonl", Demonstration).records] == kept
    assert (metrics["kept"], metrics["dropped/below_minimum"]) == (len(kept), PROMPTS - len(kept))


def test_cut_answers_are_left_out_and_prompts_add_up(
    folder: Path, tmp_path: Path, drawn: list[tuple[Prompt, list[Completion]]]
) -> None:
    """The longest prompts leave no room; of the others, those whose answers are all cut or equal are dropped."""
    changes = {"unfinished": "drop", "data": {"max_length": 17, "over_long": "skip"}, "write": "pair"}
    metrics = start(tmp_path / "run", sampling(folder, **changes)).record.metrics
    skipped = sum(len(prompt.messages[0].content) > 9 for prompt, _ in drawn)
    assert metrics["dropped/over_long"] == skipped > 0
    dropped = {name: n for name, n in metrics.items() if name.startswith("dropped/")}
    assert metrics["prompts"] == PROMPTS == metrics["kept"] + sum(dropped.values())
    assert len(dropped) > 2


def test_rankings_pairs_and_feedback_are_read_back_as_counted_by_hand(
    folder: Path, tmp_path: Path, drawn: list[tuple[Prompt, list[Completion]]]
) -> None:
    start(tmp_path / "ranking", sampling(folder, write="ranking"))
    start(tmp_path / "pair", sampling(folder, write="pair"))
    start(tmp_path / "feedback", sampling(folder, write="feedback", minimum=2))
    rankings = read(tmp_path / "ranking/data/comparisons.jsonl", Comparison).records
    pairs = read(tmp_path / "pair/data/comparisons.jsonl", Comparison).records
    verdicts = read(tmp_path / "feedback/data/feedback.jsonl", Feedback).records
    told = [(prompt, sorted(set(texts_of(answers)), key=count)) for prompt, answers in drawn]
    differing = [(prompt, texts) for prompt, texts in told if len(set(map(count, texts))) > 1]
    for ranking, pair, (prompt, texts) in zip(rankings, pairs, differing, strict=True):
        said = [response[0].content for response in ranking.responses]
        assert sorted(said) == sorted(texts) and ranking.prompt == prompt.messages
        assert ranking.margins == tuple(float(count(text)) for text in said) == tuple(sorted(ranking.margins)[::-1])
        for i, j in zip(range(len(said)), range(1, len(said)), strict=False):
            assert ranking.ranks[j] - ranking.ranks[i] == (count(said[i]) > count(said[j]))
        assert pair.margins == (ranking.margins[0], ranking.margins[-1])
    assert sorted((v.response[0].content, v.label) for v in verdicts) == sorted(
        (text, count(text) >= 2) for _, texts in told for text in texts
    )


def cut_after(calls: int, reward: Callable[[list[Completion]], Scores] = letters) -> Any:
    made = 0

    def failing(completions: list[Completion]) -> Scores:
        nonlocal made
        made += 1
        if made > calls:
            raise PowerCut
        return reward(completions)

    return failing


def test_a_killed_run_goes_on_and_ends_with_the_same_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = sampling(folder, write="ranking")
    whole = start(tmp_path / "whole", config)
    monkeypatch.setattr(chunks, "CHUNK", 4)
    in_chunks = start(tmp_path / "chunks", config)
    with pytest.raises(PowerCut):
        start(tmp_path / "killed", config, cut_after(2))
    assert not (tmp_path / "killed/data").exists()
    (tmp_path / "killed/chunks/.00000008.json.123").write_text('{"key": "')  # what a kill inside a write leaves
    resumed = start(tmp_path / "killed", config, cut_after(4))  # six chunks, two of them made
    assert written(resumed) == written(in_chunks) == written(whole)
    assert resumed.record.metrics == whole.record.metrics
    assert read_metrics(resumed.directory) == read_metrics(in_chunks.directory)
    assert len(read_metrics(resumed.directory)) == 6


def test_chunks_of_other_options_are_not_taken(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK", 8)
    with pytest.raises(PowerCut):
        start(tmp_path / "run", sampling(folder), cut_after(2))
    warmer = sampling(folder, temperature=2.0)
    assert written(start(tmp_path / "run", warmer)) == written(start(tmp_path / "clean", warmer))


def test_a_smaller_budget_changes_nothing(folder: Path, tmp_path: Path) -> None:
    small = QUIET.model_copy(update={"token_budget": 50})
    one, other = start(tmp_path / "one", sampling(folder)), start(tmp_path / "two", sampling(folder), runtime=small)
    assert written(one) == written(other)


def test_two_processes_write_the_file_of_one(folder: Path, tmp_path: Path) -> None:
    place = prepare(tmp_path)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    paths = os.pathsep.join(str(path) for path in (ROOT, ROOT / "tests", ROOT / "tests/stages"))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    script = str(ROOT / "tests/stages/sample_cases.py")
    done = subprocess.run([*launcher, script, str(place)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    sampled, critiqued = sampling(place, write="ranking"), critiquing(place)
    compared = sampling(place, write="ranking", judge=judge(place))
    for name, config in (("sampled", sampled), ("critiqued", critiqued), ("judged", compared)):
        alone = start(tmp_path / "alone" / name, config)
        record = json.loads((place / name / "run.json").read_text())
        together = Run.open(place / name, record["stage"], config, QUIET, id="test")
        assert written(together) == written(alone)
        assert record["metrics"] == alone.record.metrics


def test_rewards_inside_an_answer_count(folder: Path, tmp_path: Path) -> None:
    def inside(completions: list[Completion]) -> Scores:
        return Scores(total=(1.0,) * len(completions), steps=tuple(((0, 0.5), (1, 0.25)) for _ in completions))

    run = start(tmp_path / "run", sampling(folder), inside)
    assert run.record.metrics["score"] == 1.75
    nan = ((0, float("nan")),)
    with pytest.raises(RewardFailure, match="gives its token 0 the reward nan"):
        start(tmp_path / "nan", sampling(folder), lambda c: Scores(total=(1.0,) * len(c), steps=(nan,) * len(c)))


def test_ids_that_several_prompts_have_are_left_out(folder: Path, tmp_path: Path) -> None:
    rows = [{"id": name, "messages": [{"role": "user", "content": f"say {name}"}]} for name in ("a", "b")]
    (tmp_path / "prompts").mkdir()
    for file, held in (("one", rows[:1]), ("two", rows)):
        (tmp_path / f"prompts/{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held))
    start(tmp_path / "run", sampling(folder, data={"path": str(tmp_path / "prompts")}))
    records = read(tmp_path / "run/data/demonstrations.jsonl", Demonstration).records
    assert [record.id for record in records] == [None, None, "b"]


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda completions: Scores(total=(float("nan"),) * len(completions)), "the score of completion 0 is nan"),
        (lambda completions: Scores(total=(0.0,) * len(completions)), "none of 22 prompts gives a record"),
    ],
)
def test_a_reward_that_says_nothing_is_an_error(folder: Path, tmp_path: Path, reward: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        start(tmp_path / "run", sampling(folder, write="pair"), reward)


def test_answers_without_a_score_are_left_out_and_counted(
    folder: Path, tmp_path: Path, drawn: list[tuple[Prompt, list[Completion]]]
) -> None:
    def sure(text: str) -> bool:
        return count(text) != 1

    def judging(completions: list[Completion]) -> Scores:
        said = letters(completions).total
        return Scores(
            total=tuple(s if sure(c.response.content) else None for s, c in zip(said, completions, strict=True))
        )

    metrics = start(tmp_path / "run", sampling(folder), judging).record.metrics
    scores = [[count(text) for text in texts_of(answers) if sure(text)] for _, answers in drawn]
    kept = [prompt.id for (prompt, _), some in zip(drawn, scores, strict=True) if some]
    assert [r.id for r in read(tmp_path / "run/data/demonstrations.jsonl", Demonstration).records] == kept
    known = [score for some in scores for score in some]
    answers = sum(len(some) for _, some in drawn)
    assert metrics["answers/failed"] == answers - len(known) > 0 and metrics["answers"] == answers
    assert metrics["score"] == pytest.approx(sum(known) / len(known))
