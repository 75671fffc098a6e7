"""The sample stage with a judge of pairs: what it writes against verdicts counted by hand, kills, silence."""

from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import tiny
from http_server import serving
from sample_cases import (
    PROMPTS,
    PowerCut,
    draws,
    judge,
    judging,
    prepare,
    sampling,
    start,
    texts_of,
    verdict,
    written,
)
from transformers import AutoTokenizer

from alignkit import chunks
from alignkit.config import InputError
from alignkit.contents import Contents
from alignkit.data.read import read
from alignkit.recipe.chain import plan
from alignkit.recipe.check import check_steps
from alignkit.recipe.identity import stage_ids
from alignkit.recipe.read import Recipe, load_recipe
from alignkit.records import Comparison, Completion, Prompt
from alignkit.runs import read_metrics
from reward_models.judge import Messages
from reward_models.scores import Unscored


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("judged"))


@pytest.fixture(scope="module")
def drawn(folder: Path) -> list[tuple[Prompt, list[Completion]]]:
    return draws(folder)


def outcome(one: str, other: str) -> float | None:
    """By both orders."""
    straight, swapped = verdict(one, other), verdict(other, one)
    if one == other:
        return 0.5
    if straight is None or swapped is None:
        return None
    return {("first", "second"): 1.0, ("second", "first"): 0.0}.get((straight, swapped), 0.5)


def test_pairs_hold_what_the_judge_said_in_both_orders(
    folder: Path, tmp_path: Path, drawn: list[tuple[Prompt, list[Completion]]]
) -> None:
    run = start(tmp_path / "run", sampling(folder, write="pair", samples=2, judge=judge(folder)))
    records = read(tmp_path / "run/data/comparisons.jsonl", Comparison).records
    expected: dict[str | None, list[str]] = {}
    counts: Counter[str] = Counter()
    for prompt, answers in drawn:
        one, other = texts_of(answers)[:2]
        found = outcome(one, other)
        counts["one_answer" if one == other else {None: "no_verdict", 0.5: "tied"}.get(found, "kept")] += 1
        if found in (0, 1):
            expected[prompt.id] = [one, other] if found else [other, one]
    assert {r.id: [said[0].content for said in r.responses] for r in records} == expected
    assert all((r.ranks, r.margins) == ((1, 2), (1.0, 0.0)) for r in records)
    metrics = run.record.metrics
    assert len(counts) > 2 and metrics["kept"] == counts.pop("kept") == metrics["records"] == metrics["pairs/won"]
    assert {name: metrics[f"dropped/{name}"] for name in counts} == counts
    assert metrics["prompts"] == PROMPTS and metrics["pairs"] == PROMPTS - counts["one_answer"]


def test_rankings_go_by_the_pairs_won(
    folder: Path, tmp_path: Path, drawn: list[tuple[Prompt, list[Completion]]]
) -> None:
    run = start(tmp_path / "run", sampling(folder, write="ranking", judge=judge(folder)))
    records = {r.id: r for r in read(tmp_path / "run/data/comparisons.jsonl", Comparison).records}
    pairs = Counter[Any]()
    for prompt, answers in drawn:
        said = list(dict.fromkeys(texts_of(answers)))
        verdicts = {(a, b): outcome(a, b) for a, b in combinations(said, 2)}
        pairs.update(verdicts.values())
        record = records.get(prompt.id)
        if record is None:
            assert len(said) < 5 or None in verdicts.values() or set(verdicts.values()) == {0.5}
            continue
        kept = [response[0].content for response in record.responses]
        both = verdicts | {(b, a): None if v is None else 1 - v for (a, b), v in verdicts.items()}
        assert all(both[a, b] is not None for a, b in combinations(kept, 2))
        assert set(kept) == set(said) or None in verdicts.values()
        won = [sum(both[a, b] or 0.0 for b in kept if b != a) for a in kept]
        assert record.margins == tuple(won) == tuple(sorted(won, reverse=True))
        assert record.ranks == tuple(sorted(set(won), reverse=True).index(w) + 1 for w in won)
    metrics = run.record.metrics
    assert (metrics["pairs/tied"], metrics["pairs/no_verdict"]) == (pairs[0.5], pairs[None])
    assert metrics["pairs/won"] == pairs[1.0] + pairs[0.0] and min(pairs.values()) > 0
    assert metrics["prompts"] == metrics["kept"] + sum(n for name, n in metrics.items() if "dropped/" in name)


def test_a_killed_run_goes_on_and_ends_with_the_same_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = sampling(folder, write="ranking", judge=judge(folder))
    whole = start(tmp_path / "whole", config)
    monkeypatch.setattr(chunks, "CHUNK", 5)
    asked: list[int] = []

    def cut(conversations: list[Messages]) -> list[str]:
        asked.append(len(conversations))
        if len(asked) == 3:
            raise PowerCut
        return judging(conversations)

    with pytest.raises(PowerCut):
        start(tmp_path / "killed", config, ask=cut)
    resumed = start(tmp_path / "killed", config, ask=cut)
    assert len(asked) == 6 and asked[2] == asked[3]  # once a chunk, all its pairs at a time; the third one twice
    assert sum(asked) - asked[2] == 2 * whole.record.metrics["pairs"]
    assert written(resumed) == written(whole) and resumed.record.metrics == whole.record.metrics
    assert len(read_metrics(resumed.directory)) == 5


def test_a_server_that_is_down_stops_the_run_unless_it_is_to_be_skipped(folder: Path, tmp_path: Path) -> None:
    def down(conversations: list[Messages]) -> list[str | Unscored]:
        return [*judging(conversations[:-1]), Unscored("missing: no connection")]

    config = sampling(folder, write="pair", judge=judge(folder))
    with pytest.raises(InputError, match=r"judge: a verdict on answers to 'say 21.*' is missing: no connection"):
        start(tmp_path / "run", config, ask=down)
    skipping = sampling(folder, write="pair", judge=judge(folder, on_failure="skip", retries=0))
    with pytest.raises(InputError, match=r"none of 22 prompts gives a record \(\{'no_verdict': .*reward or judge"):
        start(tmp_path / "skipped", skipping, ask=None)


def test_a_judge_behind_a_server_is_asked_once_for_a_verdict(folder: Path, tmp_path: Path) -> None:
    def answer(number: int, body: dict[str, Any]) -> tuple[int, Any]:
        (text,) = judging([body["messages"]])
        return 200, {"choices": [{"message": {"role": "assistant", "content": text}}]}

    with serving(answer) as served:
        options = judge(folder, url=f"{served.url}/v1", cache=str(tmp_path / "kept"))
        config = sampling(folder, write="pair", judge=options)
        one = start(tmp_path / "one", config, ask=None)
        asked = len(served.asked)
        other = start(tmp_path / "two", config, ask=None)
    questions = [body["messages"] for body in served.asked]
    unclear = {str(one) for one in questions[:asked] if judging([one]) == ["Well.\nBetter: both"]}
    assert {str(one) for one in questions[asked:]} == unclear and len(unclear) < asked
    assert "<guidelines>\n- critique: wrong?" in served.asked[0]["messages"][0]["content"]
    assert written(one) == written(other) == written(start(tmp_path / "alone", config))


def test_a_judge_in_a_folder_says_no_verdict_where_it_only_babbles(folder: Path, tmp_path: Path) -> None:
    """Letters at random are no verdict: nothing is labelled by them."""
    words = AutoTokenizer.from_pretrained(tiny.checkpoint(tmp_path / "judge", seed=1))
    words.chat_template = (
        "{% for m in messages %}{{ m.content }}{{ '~' if m.role == 'assistant' else '' }}{% endfor %}"
    )
    words.save_pretrained(tmp_path / "judge")
    options = {"guidelines": str(folder / "rules.yaml"), "path": str(tmp_path / "judge"), "max_new_tokens": 4}
    with pytest.raises(InputError, match=r"none of 22 prompts gives a record \(\{'no_verdict': \d+"):
        start(tmp_path / "run", sampling(folder, write="ranking", samples=2, judge=options), ask=None)


RECIPE = """
name: judged
stages:
  sample:
    model: {{path: {folder}/model, chat_template: none, eos_token: "~"}}
    data: {{path: {folder}/prompts.jsonl}}
    write: pair
    judge: {{guidelines: rules.txt, {judge}}}
"""


def test_guidelines_and_judge_are_part_of_the_id_and_checked(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def recipe(judge: str) -> Recipe:
        Path("judged.yaml").write_text(RECIPE.format(folder=folder, judge=judge))
        return load_recipe(Path("judged.yaml"))

    def id_of(judge: str) -> str:
        return stage_ids(recipe(f"path: {folder}/{judge}"), Contents())["sample"]

    with pytest.raises(InputError, match=r"judge\.guidelines: there is no file or folder 'rules\.txt' here"):
        id_of("model")
    Path("rules.txt").write_text("Be good.\n")
    first = id_of("model")
    assert id_of("model") == first
    Path("rules.txt").write_text("Be better.\n")
    assert id_of("model") != first
    with pytest.raises(InputError, match=r"judge\.path: there is no file or folder '.*/absent' here"):
        id_of("absent")
    key = recipe("url: 'http://127.0.0.1:9/v1', model: m, key_variable: NO_SUCH_KEY_SET")
    with pytest.raises(
        InputError, match=r"stages\.sample: judge\.key_variable: the environment variable .* is not set"
    ):
        list(check_steps(plan(key, Path("runs"))))
