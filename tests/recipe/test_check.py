"""What `alignkit check` refuses is what the run would refuse; what the run takes, it passes."""

import json
from importlib import import_module
from pathlib import Path

import pytest
import tiny

from alignkit.config import InputError
from alignkit.recipe.chain import Step, plan
from alignkit.recipe.check import Checked, check_steps
from alignkit.recipe.read import load_recipe
from alignkit.runs import Run

RECIPE = """
name: small
runtime: {trackers: [], device: cpu}
stages:
  ppo:
    model: {path: base, chat_template: none, eos_token: "~"}
    data: {path: prompts.jsonl, validation: 2, max_length: 12}
    train: {learning_rate: 1e-3, batch_size: 4, steps: 1}
    reward: {kind: rules, rule: number}
    max_new_tokens: 6
  evaluate:
    models: [base]
    chat_template: none
    eos_token: "~"
    data: {path: prompts.jsonl, max_length: 12}
    reward: {kind: rules, rule: number}
    metrics: [exact_match]
    texts: {path: texts.jsonl, max_length: 22}
    max_new_tokens: 6
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe on eight prompts of six tokens (a token a letter) with the answers 0 to 7."""
    monkeypatch.chdir(tmp_path)
    tiny.checkpoint(Path("base"))
    rows = [{"prompt": f"say {n}?", "answer": f"so {n}"} for n in range(8)]
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("wordy.jsonl").write_text("".join(json.dumps(row | {"answer": "none"}) + "\n" for row in rows))
    Path("texts.jsonl").write_text('{"prompt": "say 1?", "completion": "so it is one."}\n')
    Path("small.yaml").write_text(RECIPE)
    return Path("small.yaml")


def steps_of(recipe: Path, *overrides: str) -> list[Step]:
    return plan(load_recipe(recipe, overrides), Path("runs"))


def checked(recipe: Path, *overrides: str) -> list[Checked]:
    return list(check_steps(steps_of(recipe, *overrides)))


def ran(recipe: Path, stage: str, *overrides: str) -> None:
    """Runs one stage that builds on no other, in this process."""
    (step,) = (step for step in steps_of(recipe, *overrides) if step.stage.name == stage)
    run = Run.open(step.directory, stage, step.stage.config, step.stage.runtime, step.id)
    import_module(f"alignkit.stages.{stage}").run(step.stage.config, step.stage.runtime, run)


def test_a_sound_recipe_passes_and_runs(recipe: Path) -> None:
    ppo, evaluate = checked(recipe)
    assert (ppo.records, ppo.sequences, ppo.tokens, ppo.longest, ppo.left_out) == (8, 8, 48, 6, 0)
    assert (evaluate.records, evaluate.tokens, evaluate.note) == (8, 48, "")
    ran(recipe, "ppo")
    ran(recipe, "evaluate")


FAULTS = [
    ("ppo", "data.max_length=11", "data.max_length 11: "),
    ("ppo", "runtime.token_budget=11", "runtime.token_budget: 11 is less than a prompt and its completion, 12 tokens"),
    ("ppo", "reward.answer_column=solution", "reward.answer_column: the prompt's data has no column 'solution'"),
    ("ppo", "environment={kind: tools, tools: [calculator]}", "reads calls that are JSON between <tool_call> tags"),
    ("ppo", "environment={kind: function, path: 'json:loads'}", "'json:loads' is code; add --allow-code"),
    ("ppo", "data.path=wordy.jsonl", "holds no number: 'none'"),
    ("evaluate", "data.max_length=11", "data.max_length 11: 8 of 8 prompts leave no room for max_new_tokens 6"),
    ("evaluate", "data.max_length=11", "the first, prompts.jsonl:1, has 6 tokens"),
    ("evaluate", "runtime.token_budget=11", "runtime.token_budget: 11 is less than a prompt and its completion"),
    ("evaluate", "answer_column=solution", "prompts.jsonl:1: answer_column: a prompt has no column 'solution', which"),
    ("evaluate", "reward.answer_column=solution", "reward.answer_column: the prompt's data has no column 'solution'"),
    ("evaluate", "texts.max_length=19", "texts: texts.jsonl:1: an example has 20 tokens and data.max_length is 19"),
    (
        "evaluate",
        "runtime.token_budget=19",
        "texts: texts.jsonl:1: runtime.token_budget: 19 is less than a sequence of 20 tokens",
    ),
    (
        "evaluate",
        "environment={kind: tools, tools: [calculator]}",
        "reads calls that are JSON between <tool_call> tags",
    ),
    ("evaluate", "environment={kind: function, path: 'json:loads'}", "'json:loads' is code; add --allow-code"),
    ("evaluate", "chat_template=absent", '\'absent\' is no "chatml", "none" or readable file'),
]


JUDGE = "reward={kind: judge, url: 'http://127.0.0.1:9/v1', model: m, guidelines: %s, key_variable: NO_SUCH_KEY_SET}"
FAULTS += [
    ("ppo", JUDGE % "small.yaml", "reward.key_variable: the environment variable that it names is not set"),
    ("evaluate", "reward={kind: rules, rule: refusal, wanted_column: unsafe}", "has no column 'unsafe'"),
]


@pytest.mark.parametrize(("stage", "change", "message"), FAULTS)
def test_check_and_run_refuse_the_same(recipe: Path, stage: str, change: str, message: str) -> None:
    with pytest.raises(InputError) as found:
        checked(recipe, f"{stage}.{change}")
    assert f"stages.{stage}: " in str(found.value) and message in str(found.value)
    with pytest.raises(InputError) as met:
        ran(recipe, stage, f"{stage}.{change}")
    assert message in str(met.value)


def test_guidelines_that_are_not_there_are_named(recipe: Path) -> None:
    with pytest.raises(
        InputError, match=r"stages\.ppo\.reward\.guidelines: there is no file or folder 'none.txt' here"
    ):
        checked(recipe, "ppo." + JUDGE % "none.txt")


def test_nothing_is_held_out_of_an_evaluation(recipe: Path) -> None:
    """Of one prompt, or of one text, nothing could be."""
    Path("prompts.jsonl").write_text('{"prompt": "say 1?", "answer": "1"}\n')
    head, _, rest = RECIPE.partition("  ppo:")
    recipe.write_text(head + rest[rest.index("  evaluate:") :])
    (evaluate,) = checked(recipe, "evaluate.data.validation=5")
    assert evaluate.records == 1


def test_models_are_checked_as_each_is_spoken_to(recipe: Path) -> None:
    """The recipe's template is for models that have none; two models with different templates must both have room."""
    tiny.checkpoint(Path("wordy"))
    words = tiny.tokenizer()
    words.chat_template = (
        "{% for m in messages %}{{ m.content }}{{ '~' if m.role == 'assistant' else '..' }}{% endfor %}"
    )
    words.save_pretrained("wordy")
    room = "evaluate.data.max_length=14"
    assert checked(recipe, "evaluate.models=[wordy]", room)[1].tokens == 8 * (6 + 2)
    assert checked(recipe, "evaluate.models=[base, wordy]", room)[1].tokens == 8 * 6
    for models in ("[wordy]", "[base, wordy]", "[wordy, base]"):
        with pytest.raises(InputError, match=r"max_length 13: 8 of 8 prompts .* has 8 tokens"):
            checked(recipe, f"evaluate.models={models}", "evaluate.data.max_length=13")


def test_a_checkpoint_that_is_pretrained_on_gets_its_template_from_the_stage_that_follows(recipe: Path) -> None:
    Path("documents.txt").write_text("say it again.\n" * 50)
    recipe.write_text("""
name: small
stages:
  pretrain: {model: {path: base}, data: {path: documents.txt}}
  sft:
    model: {path: "@pretrain", chat_template: none, eos_token: "~"}
    data: {path: texts.jsonl, validation: 0}
    train: {learning_rate: 1e-3}
  evaluate:
    models: ["@sft"]
    data: {path: prompts.jsonl}
""")
    _, sft, evaluate = checked(recipe)
    assert (sft.tokens, evaluate.tokens) == (20, 48)


FEEDBACK = """
name: verdicts
runtime: {trackers: [], device: cpu}
stages:
  kto:
    model: {path: base, chat_template: none, eos_token: "~"}
    data: {path: feedback.jsonl, validation: 2, max_length: 12}
    train: {learning_rate: 1e-3, batch_size: 4, steps: 1}
"""


def test_a_trainer_of_trl_reads_what_its_algorithm_does(recipe: Path) -> None:
    rows = [{"prompt": f"say {n}?", "completion": "so so", "label": n % 2 == 0} for n in range(8)]
    Path("feedback.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = FEEDBACK.replace("  kto:", "  trl:").replace(
        "    train: {learning_rate: 1e-3, batch_size: 4, steps: 1}\n", ""
    )
    Path("trl.yaml").write_text(text + "    trainer: kto\n")
    (found,) = checked(Path("trl.yaml"))
    assert (found.records, found.sequences, found.tokens) == (8, 8, 8 * 12)  # 6, 5 and the end
    with pytest.raises(InputError, match="field `chosen` is missing"):
        checked(Path("trl.yaml"), "trl.trainer=dpo")
    with pytest.raises(InputError, match=r"options\.maxsteps: .* has no such field; did you mean max_steps\?"):
        checked(Path("trl.yaml"), "trl.options.maxsteps=3")
    rows = [{"prompt": f"say {n}?", "chosen": "so so", "rejected": "so"} for n in range(8)]
    Path("feedback.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (found,) = checked(Path("trl.yaml"), "trl.trainer=reward")  # 6, 5 or 2, and the end
    assert (found.records, found.sequences, found.tokens, found.longest) == (8, 16, 8 * (12 + 9), 12)
    with pytest.raises(InputError, match=r"an example has 12 tokens and data\.max_length is 11"):
        checked(Path("trl.yaml"), "trl.trainer=reward", "trl.data.max_length=11")


def test_feedback_is_read_and_tokenized_as_it_will_be_trained(recipe: Path) -> None:
    rows = [{"prompt": f"say {n}?", "completion": "so so", "label": n % 2 == 0} for n in range(8)]
    Path("feedback.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("verdicts.yaml").write_text(FEEDBACK)
    (found,) = checked(Path("verdicts.yaml"))
    assert (found.records, found.sequences, found.tokens, found.longest, found.note) == (8, 8, 96, 12, "")
    ran(Path("verdicts.yaml"), "kto")
    with pytest.raises(InputError, match=r"stages\.kto: feedback\.jsonl:1: an example has 12 tokens and data\."):
        checked(Path("verdicts.yaml"), "kto.data.max_length=11")
    Path("feedback.jsonl").write_text(json.dumps(rows[0] | {"label": "good"}) + "\n")
    with pytest.raises(InputError, match=r"feedback\.jsonl:1: .*label"):
        checked(Path("verdicts.yaml"), "kto.data.validation=0")
