"""Data made by a stage: later stages name it, what cannot be used so is refused, and changes run what they must."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny

from alignkit.config import InputError
from alignkit.lineage import read_record
from alignkit.options.shared import RuntimeOptions
from alignkit.recipe import identity
from alignkit.recipe.chain import StageFailed, plan, run_chain
from alignkit.recipe.check import Checked, check_steps
from alignkit.recipe.child import run_prepared
from alignkit.recipe.read import load_recipe

RECIPE = """
name: made
runtime: {trackers: [], device: cpu}
stages:
  sample:
    model: {path: base, chat_template: none, eos_token: "~"}
    data: {path: prompts.jsonl, max_length: 40}
    reward: {kind: rules, rule: contains}
    samples: 3
    unfinished: keep
    max_new_tokens: 6
  sft:
    model: {path: base, chat_template: none, eos_token: "~"}
    data: {path: "@sample", validation: 2, max_length: 40}
    train: {learning_rate: 1e-3, steps: 1}
"""
CRITIQUE = """
  critique:
    model: {path: base, chat_template: none, eos_token: "~"}
    data: {path: "@sample", max_length: 400}
    guidelines: rules.txt
    write: both
    unfinished: keep
    max_new_tokens: 6
  dpo:
    model: {path: "@sft"}
    data: {path: "@critique", split: comparisons, validation: 0, max_length: 40}
    train: {steps: 1}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve prompts whose reference answer is a letter."""
    monkeypatch.chdir(tmp_path)
    tiny.checkpoint(Path("base"))
    rows = [{"prompt": f"say {n}?", "answer": "abcdefghijkl"[n]} for n in range(12)]
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("rules.txt").write_text("be brief\nbe kind\n")
    Path("made.yaml").write_text(RECIPE)
    return Path("made.yaml")


def run(recipe: Path, *overrides: str) -> list[str]:
    """The stages that ran, each in this process."""
    ran: list[str] = []

    def execute(directory: Path, runtime: RuntimeOptions) -> None:
        ran.append(directory.name)
        if run_prepared(directory):
            record = read_record(directory)
            raise StageFailed(str(record and record.error))

    run_chain(load_recipe(recipe, overrides), Path("runs"), execute)
    return ran


def checked(recipe: Path, *overrides: str) -> list[Checked]:
    return list(check_steps(plan(load_recipe(recipe, overrides), Path("runs"))))


def record(name: str) -> Any:
    return json.loads(Path("runs/made", name, "run.json").read_text())


def test_a_later_stage_reads_what_was_made_and_changes_run_no_more_than_they_must(recipe: Path) -> None:
    before = checked(recipe)
    assert [one.records for one in before] == [12, 0] and before[1].note == "nothing to read yet"
    assert (before[0].tokens, before[0].longest) == (10 * 6 + 2 * 7, 7)
    assert run(recipe) == ["sample", "sft"]
    (source,) = record("sft")["data"]
    path = Path("runs/made/sample/data/demonstrations.jsonl")
    assert (Path(source["path"]), source["rows"]) == (path.resolve(), 12)
    assert record("sft")["parents"] == {"sample": record("sample")["id"]}
    assert run(recipe) == []
    assert checked(recipe)[1].records == 12  # the data is there now, and is looked at
    assert run(recipe, "sft.train.steps=2") == ["sft"]
    made = path.read_bytes()
    assert run(recipe, "sample.samples=2") == ["sample", "sft"]
    assert run(recipe) == [] and path.read_bytes() == made  # both were set aside, and are found again
    Path("prompts.jsonl").write_text(Path("prompts.jsonl").read_text() + '{"prompt": "more", "answer": "m"}\n')
    assert run(recipe) == ["sample", "sft"]


def test_revised_answers_serve_two_stages_by_their_split(recipe: Path) -> None:
    recipe.write_text(RECIPE + CRITIQUE)
    assert run(recipe) == ["sample", "sft", "critique", "dpo"]
    assert [Path(source["path"]).name for source in record("dpo")["data"]] == ["comparisons.jsonl"]
    held = record("critique")
    assert held["artifact"] == "data" and held["metrics"]["demonstrations"] == held["metrics"]["kept"]
    Path("rules.txt").write_text("be brief\nbe honest\n")
    assert run(recipe) == ["critique", "dpo"]  # what the guidelines say is part of the id
    assert checked(recipe)[2].records == 12
    with pytest.raises(InputError, match=r"stages\.critique: data\.max_length 40: 12 of 12 prompts leave no room"):
        checked(recipe, "critique.data.max_length=40")
    Path("rules.txt").write_text("")
    with pytest.raises(InputError, match=r"rules\.txt: holds no guideline"):
        checked(recipe)


def test_what_was_made_is_mixed_with_a_file_and_streamed(recipe: Path) -> None:
    rows = [{"prompt": f"say it {n}?", "completion": "z"} for n in range(5)]
    Path("more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe.write_text(RECIPE.replace(DATA, OWN + ", stream: true"))
    assert checked(recipe)[1].note == "nothing to read yet"
    assert run(recipe) == ["sample", "sft"]
    held = record("sft")
    assert [source["rows"] for source in held["data"]] == [12, 5]
    assert held["parents"] == {"sample": record("sample")["id"]}
    lines = [json.loads(line) for line in Path("runs/made/sft/metrics.jsonl").read_text().splitlines()]
    assert lines[0]["data/train/sample"] + lines[0]["data/train/more"] == lines[0]["data/train"]
    assert checked(recipe)[1].records == 17
    Path("more.jsonl").write_text(Path("more.jsonl").read_text() + '{"prompt": "more", "completion": "m"}\n')
    assert run(recipe) == ["sft"]


def test_a_streamed_data_set_of_a_hub_enters_the_id_by_its_revision(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe.write_text(RECIPE.replace(DATA, 'data: {path: "team/talks", stream: true'))
    ids = []
    for commit in ("c0ffee", "c0ffee", "beef"):
        monkeypatch.setattr(identity, "hub_revision", lambda name, where, sha=commit: f"{name} {sha}")
        ids.append(plan(load_recipe(recipe), Path("runs"))[1].id)
    assert ids[0] == ids[1] != ids[2]
    told = r"stages\.sft\.data\.path: there is no file or folder 'team/talks' here; .* needs data\.stream: true"
    with pytest.raises(InputError, match=told):
        plan(load_recipe(recipe, ["sft.data.stream=false"]), Path("runs"))


DATA = 'data: {path: "@sample"'
MIXED = 'data: {sources: [{path: "@other"}, {path: more.jsonl}]'
OWN = MIXED.replace("other", "sample")
MISUSED = [
    (RECIPE.replace("    samples: 3", "    write: feedback\n    minimum: 1"),
     r"made\.yaml:15: stages\.sft\.data: @sample writes feedback, and sft reads demonstration records"),
    (RECIPE.replace(DATA, 'data: {path: "@other"') + "  other: {stage: sft, model: {path: b}, data: {path: d}}\n",
     r"stages\.sft\.data: @other is a model, and data is asked for here"),
    (RECIPE + '  dpo: {model: {path: "@sample"}, data: {path: prompts.jsonl}}\n',
     r"stages\.dpo\.model\.path: @sample is data, and a model is asked for here"),
    (RECIPE.replace(DATA, MIXED) + "  other: {stage: sft, model: {path: b}, data: {path: d}}\n",
     r"made\.yaml:14: stages\.sft\.data\.sources: @other is a model, and data is asked for here"),
    (RECIPE.replace("    samples: 3", "    write: feedback\n    minimum: 1").replace(DATA, OWN),
     r"stages\.sft\.data\.sources: @sample writes feedback, and sft reads demonstration records"),
    (RECIPE + '  evaluate: {models: ["@sft", "@sample"], data: {path: prompts.jsonl}}\n',
     r"stages\.evaluate\.models: @sample is data"),
    (RECIPE + '  evaluate: {models: ["@sft"], data: {path: prompts.jsonl}}\n  dpo: {model: {path: "@evaluate"}, '
     'data: {path: prompts.jsonl}}\n', "@evaluate is the results of an evaluation, and a model is asked for here"),
    (RECIPE + '  dpo: {model: {path: "@sft"}, data: {path: "@sample"}}\n',
     r"@sample writes demonstrations, and dpo reads comparison records; change its `write`"),
    (RECIPE + CRITIQUE.replace("split: comparisons, ", ""),
     r"@critique leaves demonstrations and comparisons: name one of them with `split`"),
    (RECIPE + CRITIQUE.replace("split: comparisons", "split: feedback"), "name one of them with `split`"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), MISUSED)
def test_what_a_reference_cannot_stand_for_is_refused_before_anything_runs(
    recipe: Path, text: str, message: str
) -> None:
    recipe.write_text(text)
    with pytest.raises(InputError, match=message):
        load_recipe(recipe)


def test_the_best_answer_of_a_ranking_is_a_demonstration_and_whatever_has_a_prompt_is_one(recipe: Path) -> None:
    ppo = '  ppo: {model: {path: base}, data: {path: "@sample"}, reward: {kind: lexicon}}\n'
    recipe.write_text(RECIPE.replace("    samples: 3", "    write: pair") + ppo)
    assert list(load_recipe(recipe).stages) == ["sample", "sft", "ppo"]


@pytest.mark.parametrize(
    ("text", "message"),
    [('{"peft_type": "LORA"}', "base_model_name_or_path: no base is named"), ('{"r": 8', r"is no JSON: .* column 8")],
)
def test_an_adapter_without_a_base_is_named(recipe: Path, text: str, message: str) -> None:
    Path("adapter").mkdir()
    Path("adapter/adapter_config.json").write_text(text)
    with pytest.raises(InputError, match=rf"adapter/adapter_config\.json: {message}"):
        plan(load_recipe(recipe, ["sample.model.path=adapter"]), Path("runs"))


def test_a_missing_file_of_guidelines_is_named(recipe: Path) -> None:
    recipe.write_text(RECIPE + CRITIQUE.replace("rules.txt", "absent.txt"))
    with pytest.raises(
        InputError, match=r"stages\.critique\.guidelines: there is no file or folder 'absent\.txt' here"
    ):
        plan(load_recipe(recipe), Path("runs"))
