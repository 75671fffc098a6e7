"""The sample stage without a model: a judge labels what a file holds, against drawn answers and counts by hand."""

import json
from pathlib import Path
from typing import Any

import pytest
from http_server import serving
from sample_cases import PROMPTS, PowerCut, draws, judge, judging, prepare, sampling, start, written

from alignkit import chunks
from alignkit.config import InputError, build
from alignkit.contents import Contents
from alignkit.data.read import read
from alignkit.options.sample import SampleConfig
from alignkit.recipe.chain import plan
from alignkit.recipe.check import check_steps
from alignkit.recipe.identity import stage_ids
from alignkit.recipe.read import load_recipe
from alignkit.records import Candidates, Comparison
from alignkit.runs import read_metrics
from reward_models.judge import Messages


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Also drawn.jsonl: the five answers that seed 0 draws to each prompt, without ranks."""
    place = prepare(tmp_path_factory.mktemp("given"))
    rows = [
        {
            "id": prompt.id,
            "prompt": [{"role": "user", "content": prompt.messages[0].content}],
            "responses": [[{**answer.response.model_dump(), "finished": answer.finished}] for answer in answers],
            **prompt.columns,
        }
        for prompt, answers in draws(place)
    ]
    lines(place / "drawn.jsonl", *rows)
    return place


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def given(folder: Path, rows: Path, **changes: Any) -> SampleConfig:
    options = {"data": {"path": str(rows)}, "write": "ranking", "judge": judge(folder), "unfinished": "keep"}
    return build(SampleConfig, options | changes, "")


@pytest.mark.parametrize("write", ["pair", "ranking"])
def test_a_file_of_answers_gives_what_drawing_them_gave(folder: Path, tmp_path: Path, write: str) -> None:
    drawn = start(tmp_path / "drawn", sampling(folder, write=write, judge=judge(folder)))
    found = start(tmp_path / "given", given(folder, folder / "drawn.jsonl", write=write))
    assert written(found) == written(drawn)
    counts = drawn.record.metrics
    assert found.record.metrics == counts and counts["answers/unfinished"] > 0
    assert counts["pairs/no_verdict"] > 0 and counts["prompts"] == PROMPTS
    (line,) = read_metrics(found.directory)
    assert "tokens" not in line and line["won"] + line["tied"] + line["no_verdict"] == pytest.approx(1)
    assert found.record.throughput.keys() == {"examples_per_second"}
    assert [source["rows"] for source in found.record.data] == [PROMPTS]


def test_ranks_are_replaced_and_every_row_is_accounted_for(folder: Path, tmp_path: Path) -> None:
    """The judge counts letters a … e, likes the first of equals, and says nothing where they differ by three."""
    rows = [
        {
            "id": "wrong",
            "prompt": "q",
            "responses": ["x", "ab", "a"],
            "ranks": [1, 3, 2],
            "margins": [3, 1, 2],
            "by": 7,
        },
        {"id": "right", "prompt": "q", "responses": ["abx", "ax"], "ranks": [1, 2]},
        {"id": "tie", "prompt": "q", "responses": ["ax", "xb"], "ranks": [1, 2]},
        {"id": "tied", "prompt": "q", "responses": ["aa", "x"], "ranks": [1, 1]},
        {"id": "silent", "prompt": "q", "responses": ["abc", "x"]},
        {"id": "same", "prompt": "q", "responses": ["ab", "ab"]},
        {"id": "alone", "prompt": "q", "responses": ["ab"]},
        {"id": "pair", "prompt": "q", "chosen": "x", "rejected": "ab"},
        {"id": "some", "prompt": "q", "responses": ["a", "abcd", "ax", "x"]},
    ]
    run = start(tmp_path / "run", given(folder, lines(tmp_path / "rows.jsonl", *rows)))
    records = read(tmp_path / "run/data/comparisons.jsonl", Comparison).records
    found = {r.id: ([said[0].content for said in r.responses], r.ranks, r.margins) for r in records}
    assert found == {
        "wrong": (["ab", "a", "x"], (1, 2, 3), (2.0, 1.0, 0.0)),
        "right": (["abx", "ax"], (1, 2), (1.0, 0.0)),
        "tied": (["aa", "x"], (1, 2), (1.0, 0.0)),
        "pair": (["ab", "x"], (1, 2), (1.0, 0.0)),
        "some": (["a", "ax", "x"], (1, 1, 2), (1.5, 1.5, 0.0)),
    }
    assert records[0].columns == {"by": 7}
    metrics = run.record.metrics
    dropped = {name: n for name, n in metrics.items() if name.startswith("dropped/")}
    assert dropped == {"dropped/tied": 1, "dropped/no_verdict": 1, "dropped/one_answer": 2}
    assert (metrics["prompts"], metrics["kept"], metrics["answers"], metrics["answers/no_verdict"]) == (9, 5, 20, 2)
    assert metrics["pairs"] == 3 + 1 + 1 + 1 + 1 + 1 + 6
    # of the ranked: the three pairs of the first row against the ranks, that of "right" with them, of "pair" against
    agreed = {name: n for name, n in metrics.items() if name.startswith("agreement")}
    # of 27 resamples of these three, 8 lack the second, one holds nothing else: the tails of 2.5 % are 0 and 1
    assert agreed == {"agreement": 1 / 5, "agreement/low": 0, "agreement/high": 1, "agreement/pairs": 5} | {
        "agreement/undecided": 1
    }
    (line,) = read_metrics(run.directory)
    assert {name: line[name] for name in agreed} == agreed
    # of the last: a-abcd and abcd-ax differ by three, a-ax tie, abcd-x differ by four
    assert (metrics["pairs/won"], metrics["pairs/tied"], metrics["pairs/no_verdict"]) == (3 + 3 + 3, 1 + 1, 1 + 2)


def test_responses_of_several_turns_are_compared_and_kept_whole(folder: Path, tmp_path: Path) -> None:
    hh = {
        "chosen": "\n\nHuman: q\n\nAssistant: x\n\nHuman: no?\n\nAssistant: y",
        "rejected": "\n\nHuman: q\n\nAssistant: ab\n\nHuman: so?\n\nAssistant: y",
    }
    asked: list[str] = []

    def ask(conversations: list[Messages]) -> list[str]:
        asked.extend(messages[-1]["content"] for messages in conversations)
        return judging(conversations)

    start(tmp_path / "run", given(folder, lines(tmp_path / "hh.jsonl", hh), write="pair"), ask=ask)
    (record,) = read(tmp_path / "run/data/comparisons.jsonl", Comparison).records
    assert [[turn.content for turn in said] for said in record.responses] == [["ab", "so?", "y"], ["x", "no?", "y"]]
    first = "<assistant>\nx\n</assistant>\n<user>\nno?\n</user>\n<assistant>\ny\n</assistant>"
    assert f"<first>\n{first}\n</first>" in asked[0] and f"<second>\n{first}\n</second>" in asked[1]


def test_a_killed_run_goes_on_and_a_server_is_asked_once_for_a_verdict(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "CHUNK", 8)
    whole = start(tmp_path / "whole", given(folder, folder / "drawn.jsonl"))
    asked: list[int] = []

    def cut(conversations: list[Messages]) -> list[str]:
        asked.append(len(conversations))
        if len(asked) == 2:
            raise PowerCut
        return judging(conversations)

    with pytest.raises(PowerCut):
        start(tmp_path / "killed", given(folder, folder / "drawn.jsonl"), ask=cut)
    resumed = start(tmp_path / "killed", given(folder, folder / "drawn.jsonl"), ask=cut)
    assert len(asked) == 4 and written(resumed) == written(whole)

    def answer(number: int, body: dict[str, Any]) -> tuple[int, Any]:
        (text,) = judging([body["messages"]])
        return 200, {"choices": [{"message": {"role": "assistant", "content": text}}]}

    with serving(answer) as served:
        options = judge(folder, url=f"{served.url}/v1", cache=str(tmp_path / "kept"))
        for name in ("one", "two"):
            other = start(tmp_path / name, given(folder, folder / "drawn.jsonl", judge=options), ask=None)
            assert written(other) == written(whole)
    questions = sum(asked) - asked[1]
    again = [judging([body["messages"]]) for body in served.asked[questions:]]
    assert again == [["Well.\nBetter: both"]] * len(again) and len(again) < questions


def test_chunks_of_other_answers_are_not_taken(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK", 1)
    path, calls = tmp_path / "rows.jsonl", [0]

    def cut(conversations: list[Messages]) -> list[str]:
        calls[0] += 1
        if calls[0] == 2:
            raise PowerCut
        return judging(conversations)

    rows = [{"prompt": name, "responses": ["a", "ab"]} for name in "pq"]
    with pytest.raises(PowerCut):
        start(tmp_path / "run", given(folder, lines(path, *rows)), ask=cut)
    lines(path, {"prompt": "p", "responses": ["a", "x"]}, rows[1])
    start(tmp_path / "run", given(folder, path), ask=cut)
    records = read(tmp_path / "run/data/comparisons.jsonl", Comparison).records
    assert [record.responses[0][0].content for record in records] == ["a", "ab"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"judge": None}, "give exactly one of `reward`"),
        ({"samples": 3}, "samples has no meaning without a model"),
        ({"environment": {"kind": "tools", "tools": ["calculator"]}}, "environment has no meaning without a model"),
        ({"data": {"path": "d", "max_length": 99}}, "max_length has no meaning without a model"),
        ({"write": "best"}, "write: best needs reward"),
    ],
)
def test_what_has_no_meaning_is_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        given(folder, folder / "drawn.jsonl", **changes)


def test_prompts_alone_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"alone\.jsonl:1: the row holds a Prompt, and no responses that could be comp"
    ):
        start(tmp_path / "run", given(folder, lines(tmp_path / "alone.jsonl", {"prompt": "q"})))


RECIPE = """
name: labels
stages:
  first:
    stage: sample
    data: {path: rows.jsonl}
    write: pair
    judge: {guidelines: rules.txt, url: "http://127.0.0.1:9/v1", model: m}
  again:
    stage: sample
    data: {path: "@first"}
    write: pair
    judge: {guidelines: rules.txt, url: "http://127.0.0.1:9/v1", model: m}
"""


def test_a_recipe_of_labels_is_checked(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rules.txt").write_text("Be good.\n")
    Path("labels.yaml").write_text(RECIPE)
    lines(Path("rows.jsonl"), {"prompt": "q", "responses": ["a", "b"]})
    recipe = load_recipe(Path("labels.yaml"))
    first, again = check_steps(plan(recipe, Path("runs")))
    assert (first.records, first.note) == (1, "their own responses are labelled")
    assert again.note == "nothing to read yet"
    before = stage_ids(recipe, Contents())
    lines(Path("rows.jsonl"), {"prompt": "q", "responses": ["a", "c"]})
    assert stage_ids(recipe, Contents())["first"] != before["first"]
    Path("rows.jsonl").write_text('{"prompt": "q"}\n')
    with pytest.raises(InputError, match=r"stages\.first: rows\.jsonl:1: the row holds a Prompt, and no responses"):
        list(check_steps(plan(recipe, Path("runs"))))


def test_published_answers_are_read_with_and_without_ranks(shared: Path) -> None:
    """OpenAssistant's sets that volunteers did not rank, and UltraFeedback's tied pairs, are there to be compared."""
    trees = shared / "data/oasst/trees.jsonl"
    ranked, every = (read(trees, kind).records for kind in (Comparison, Candidates))
    sets = {(record.prompt, record.responses) for record in every}
    assert len(every) > len(ranked) and all((one.prompt, one.responses) in sets for one in ranked)
    pairs = read(shared / "data/ultrafeedback/train.jsonl.gz", Candidates).records
    assert len(pairs) == 1000 and all(len(pair.responses) == 2 for pair in pairs)
