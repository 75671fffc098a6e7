"""The sample stage without a model: a reward labels what a file holds, against drawn answers and sums by hand."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from http_server import serving
from sample_cases import PROMPTS, PowerCut, draws, letters, prepare, sampling, start, written

from alignkit import chunks
from alignkit.chat import ChatFormat
from alignkit.config import InputError, build
from alignkit.data.read import read
from alignkit.models import load_tokenizer
from alignkit.options.reward_source import RewardSource
from alignkit.options.sample import SampleConfig
from alignkit.options.shared import ModelOptions
from alignkit.recipe.chain import plan
from alignkit.recipe.check import check_steps
from alignkit.recipe.read import load_recipe
from alignkit.records import Comparison, Completion, Demonstration, Feedback, Message, Scores
from alignkit.rewards import build_reward
from alignkit.runs import read_metrics
from alignkit.scorer import load_scorer, save_scorer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Also drawn.jsonl: the five answers that seed 0 draws to each prompt, without ranks."""
    place = prepare(tmp_path_factory.mktemp("given"))
    lines(
        place / "drawn.jsonl",
        *[
            {
                "id": prompt.id,
                "prompt": prompt.messages[0].content,
                "responses": [[{**answer.response.model_dump(), "finished": answer.finished}] for answer in answers],
                **prompt.columns,
            }
            for prompt, answers in draws(place)
        ],
    )
    return place


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def given(rows: Path, **changes: Any) -> SampleConfig:
    options = {"data": {"path": str(rows)}, "reward": {"kind": "lexicon"}, "unfinished": "keep"}
    return build(SampleConfig, options | changes, "")


@pytest.mark.parametrize(
    "options",
    [{"write": "best", "top": 2}, {"write": "ranking"}, {"write": "pair"}, {"write": "feedback", "minimum": 2}],
)
def test_a_file_of_answers_gives_what_drawing_them_gave(folder: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    drawn = start(tmp_path / "drawn", sampling(folder, **options))
    found = start(tmp_path / "given", given(folder / "drawn.jsonl", **options))
    assert written(found) == written(drawn)
    counts = drawn.record.metrics
    assert found.record.metrics == counts and counts["answers/unfinished"] > 0
    (line,) = read_metrics(found.directory)
    assert "tokens" not in line and line["unfinished"] > 0
    assert found.record.throughput.keys() == {"examples_per_second"}
    assert [source["rows"] for source in found.record.data] == [PROMPTS]


def test_fewer_characters_agree_with_people_as_often_as_counted_by_hand(shared: Path, tmp_path: Path) -> None:
    """HH's own text, split at its last answer; "pick the shorter" is right in 55 % of harmless comparisons."""

    def fewest(completions: list[Completion]) -> Scores:
        return Scores(total=tuple(-float(len(one.response.content)) for one in completions))

    file = shared / "data" / "hh_rlhf" / "harmless.jsonl.gz"
    rows = [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]
    pairs = [[row[side].rpartition("\n\nAssistant:")[2].strip() for side in ("chosen", "rejected")] for row in rows]
    untied = [(len(chosen), len(rejected)) for chosen, rejected in pairs if len(chosen) != len(rejected)]
    alike = sum(chosen < rejected for chosen, rejected in untied)
    metrics = start(tmp_path / "label", given(file, write="ranking"), fewest).record.metrics
    assert metrics["agreement/pairs"] == len(untied) == 1_491
    assert metrics["agreement"] == alike / len(untied)
    assert metrics["agreement/undecided"] == sum(a != b and len(a) == len(b) for a, b in pairs)


def test_prompts_may_hold_any_number_of_responses(folder: Path, tmp_path: Path) -> None:
    """The reward counts letters a … e: "abc" is 3, "x" is 0; equal responses count once."""
    rows = [
        {"id": "one", "prompt": "q", "responses": ["x"]},
        {"id": "six", "prompt": "q", "responses": ["a", "abc", "ab", "x", "abcd", "abc"]},
        {"id": "pair", "prompt": "q", "chosen": "x", "rejected": "ab"},
    ]
    path = lines(tmp_path / "rows.jsonl", *rows)
    best = start(tmp_path / "best", given(path, minimum=1, top=3))
    records = read(tmp_path / "best/data/demonstrations.jsonl", Demonstration).records
    assert [(r.id, r.messages[-1].content) for r in records] == [
        ("six", "abcd"),
        ("six/2", "abc"),
        ("six/3", "ab"),
        ("pair", "ab"),
    ]
    metrics = best.record.metrics
    assert (metrics["prompts"], metrics["kept"], metrics["dropped/below_minimum"]) == (3, 2, 1)
    assert (metrics["answers"], metrics["score"], metrics["score_kept"]) == (9, 15 / 9, 11 / 4)
    one = start(tmp_path / "one", given(path))
    assert "best_of_n_kl_bound" not in one.record.metrics
    start(tmp_path / "labels", given(path, write="feedback", minimum=2))
    labels = read(tmp_path / "labels/data/feedback.jsonl", Feedback).records
    assert [(r.response[0].content, r.label) for r in labels if r.id == "pair"] == [("x", False)]
    assert [r.label for r in labels] == [False, False, True, True, False, True, False, True]


def test_every_kind_of_reward_labels(folder: Path, tmp_path: Path) -> None:
    """A sum of a reward model, a rule that looks up a column, and a server; its parts are those of each alone."""
    format = ChatFormat.load(load_tokenizer(str(folder / "model")), "none", tiny.END)
    save_scorer(load_scorer(ModelOptions(path=str(folder / "model")), seed=3), format, tmp_path / "reward")
    rows = [{"prompt": "2 + 2", "responses": ["5", "it is 4", "four"], "answer": "4"}]

    def answer(number: int, body: dict[str, Any]) -> tuple[int, Any]:
        assert (
            body["prompts"] == [[{"role": "user", "content": "2 + 2"}]] * 3 and body["columns"]["answer"] == ["4"] * 3
        )
        return 200, {"scores": [float(len(text)) for text in body["responses"]]}

    learned = {"kind": "learned", "path": str(tmp_path / "reward")}
    with serving(answer) as served:
        of = {
            "model": learned,
            "rule": {"kind": "rules", "rule": "number"},
            "server": {"kind": "remote", "url": served.url},
        }
        reward = {"kind": "combined", "of": of}
        config = given(lines(tmp_path / "rows.jsonl", *rows), write="ranking", reward=reward)
        start(tmp_path / "run", config, reward=None)
    (record,) = read(tmp_path / "run/data/comparisons.jsonl", Comparison).records
    said = [response[0].content for response in record.responses]
    asked = [Completion(prompt=record.prompt, response=Message(role="assistant", content=text)) for text in said]
    alone = build_reward(build(RewardSource, learned, ""))(asked).total
    assert sorted(said) == ["5", "four", "it is 4"]
    parts = record.columns["sampled"]["parts"]
    assert parts["model"] == pytest.approx(alone, abs=1e-5)
    assert parts["rule"] == [float(text == "it is 4") for text in said]
    assert parts["server"] == [float(len(text)) for text in said]
    assert record.margins == pytest.approx([sum(three) for three in zip(*parts.values(), strict=True)])


def test_a_killed_run_goes_on(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK", 8)
    config, scored = given(folder / "drawn.jsonl", write="ranking"), []

    def cut(completions: list[Completion]) -> Scores:
        scored.append(len(completions))
        if len(scored) == 2:
            raise PowerCut
        return letters(completions)

    with pytest.raises(PowerCut):
        start(tmp_path / "killed", config, cut)
    resumed = start(tmp_path / "killed", config, cut)
    assert len(scored) == 4 and sum(scored) - scored[1] == 5 * PROMPTS
    assert written(resumed) == written(start(tmp_path / "whole", config))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward": None}, "give exactly one of `reward`"),
        ({"samples": 3}, "samples has no meaning without a model"),
        ({"reward": {"kind": "rules", "rule": "length", "length": 4}}, "reward.rule: length counts the tokens that"),
        ({"reward": {"kind": "lexicon", "normalise": "running"}}, "normalise: running makes a score depend"),
    ],
)
def test_what_has_no_meaning_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        given(Path("rows.jsonl"), **changes)


def test_no_record_names_the_reward(folder: Path, tmp_path: Path) -> None:
    config = given(folder / "drawn.jsonl", minimum=99)
    with pytest.raises(InputError, match=r"none of 22 prompts gives a record .*; look at minimum and the reward$"):
        start(tmp_path / "run", config)


RECIPE = """
name: labels
stages:
  label:
    stage: sample
    data: {path: rows.jsonl}
    write: feedback
    minimum: 1
    reward: {kind: rules, rule: number, answer_column: solution}
  kto:
    model: {path: "model", chat_template: none, eos_token: "~"}
    data: {path: "@label"}
    train: {learning_rate: 1e-4}
"""


def test_check_looks_for_the_columns_of_a_rule(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model").symlink_to(folder / "model")
    Path("labels.yaml").write_text(RECIPE)
    lines(Path("rows.jsonl"), {"prompt": "q", "responses": ["1", "2"], "solution": "2"})
    label, kto = check_steps(plan(load_recipe(Path("labels.yaml")), Path("runs")))
    assert (label.records, label.note, kto.note) == (1, "their own responses are labelled", "nothing to read yet")
    lines(Path("rows.jsonl"), {"prompt": "q", "responses": ["1", "2"], "answer": "2"})
    with pytest.raises(InputError, match=r"stages\.label: .*reward\.answer_column: .* no column 'solution'"):
        list(check_steps(plan(load_recipe(Path("labels.yaml")), Path("runs"))))
