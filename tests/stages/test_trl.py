"""TRL's trainers as stages: the weights are those of TRL run by hand, and what surrounds them is ours."""

from pathlib import Path
from typing import Any

import pytest
import torch
from chat_cases import (
    QUIET,
    TEMPLATE,
    checkpoint,
    demonstrations,
    format_of,
    message,
    metrics,
    rankings,
    start,
    without_marks,
    write,
)
from datasets import Dataset
from huggingface_hub import constants
from test_kto import feedback
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignkit.accumulate import accumulate
from alignkit.batches import rows_of
from alignkit.config import InputError, build
from alignkit.likelihood import likelihood_objective
from alignkit.models import load_policy, save_policy
from alignkit.options.shared import LoraOptions, ModelOptions
from alignkit.options.trl import TrlConfig
from alignkit.prepare import open_setting, sequences_of
from alignkit.records import Completion, Demonstration, Scores
from alignkit.runs import Run
from alignkit.stages import trl
from alignkit.trl_trainers import TRAINERS
from reward_models.scores import RewardFailure

COMMON = {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "gradient_checkpointing": False}
LETTERS = {"kind": "rules", "rule": "pattern", "pattern": "[a-h]"}
ONLINE = COMMON | {"num_generations": 2, "max_completion_length": 6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("trl")
    checkpoint(made / "base")
    write(made / "sft.jsonl", demonstrations(16))
    write(made / "dpo.jsonl", rankings(12, most=3))
    write(made / "kto.jsonl", feedback(16))
    write(made / "prompts.jsonl", [{"prompt": [message("user", f"why {n}?")]} for n in range(12)])
    return made


def config(folder: Path, trainer: str, **changes: Any) -> TrlConfig:
    online = trainer in ("grpo", "rloo")
    data = {"path": str(folder / f"{'prompts' if online else trainer}.jsonl"), "validation": 4}
    options = {"model": {"path": str(folder / "base")}, "data": data, "trainer": trainer}
    options |= {"options": ONLINE, "reward": LETTERS} if online else {"options": COMMON}
    return build(TrlConfig, options | changes, "")


@pytest.mark.parametrize("trainer", ["sft", "dpo", "kto", "grpo", "rloo"])
def test_every_trainer_leaves_a_run_as_other_stages_do(folder: Path, tmp_path: Path, trainer: str) -> None:
    run = start(trl, tmp_path / "run", config(folder, trainer))
    assert run.record.status == "done" and run.record.data[0]["rows"] > 0
    assert any("loss" in line for line in metrics(run))
    before = AutoModelForCausalLM.from_pretrained(folder / "base").state_dict()
    after, info = AutoModelForCausalLM.from_pretrained(run.model_dir, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert any(not torch.equal(before[name], value) for name, value in after.state_dict().items())
    load_policy(ModelOptions(path=str(run.model_dir)))  # the next stage's way in


TURNS = {"sft": ("prompt", "completion"), "dpo": ("prompt", "chosen", "rejected"), "kto": ("prompt", "completion")}


@pytest.mark.parametrize("trainer", ["sft", "dpo", "kto"])
def test_the_weights_are_those_of_trl_alone(folder: Path, tmp_path: Path, trainer: str) -> None:
    """On the conversations as TRL tokenizes them; of rankings those of two responses."""
    kept = {"sft": demonstrations(16), "dpo": rankings(16, most=2), "kto": feedback(16)}[trainer]
    data = {"path": write(tmp_path / "data.jsonl", kept), "validation": 0}
    run = start(trl, tmp_path / "run", config(folder, trainer, data=data))
    rows = []
    for row in kept:
        turns = {"prompt": row.get("prompt"), "completion": row.get("completion")}
        if trainer == "sft":
            turns = {"prompt": row["messages"][:-1], "completion": row["messages"][-1:]}
        if trainer == "dpo":
            turns |= dict(zip(("chosen", "rejected"), row["responses"], strict=True))
        rows.append({name: turns[name] for name in TURNS[trainer]} | {k: row[k] for k in ("label",) if k in row})
    model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32, attn_implementation="sdpa")
    trainer_type, arguments_type, _ = TRAINERS[trainer]
    arguments = arguments_type(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to=[], seed=0, **COMMON)
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    trainer_type(model, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer).train()
    ours = AutoModelForCausalLM.from_pretrained(run.model_dir).state_dict()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=0)


def test_adapters_are_trained_and_saved(folder: Path, tmp_path: Path) -> None:
    settings = config(folder, "dpo", model={"path": str(folder / "base"), "lora": {"r": 2}})
    run = start(trl, tmp_path / "run", settings)
    assert (run.model_dir / "adapter_model.safetensors").is_file()
    load_policy(ModelOptions(path=str(run.model_dir)))


def test_our_rewards_see_records(folder: Path, tmp_path: Path) -> None:
    seen: list[Completion] = []

    def reward(completions: list[Completion]) -> Scores:
        seen.extend(completions)
        return Scores(total=tuple(float(len(c.response.content)) for c in completions))

    settings = config(folder, "grpo")

    run = Run.open(tmp_path / "run", "trl", settings, QUIET, id="test")
    trl.run(settings, QUIET, run, reward)
    assert len(seen) >= 8 and all(c.prompt[0].content.startswith("why") and c.ids for c in seen)
    assert {c.finished for c in seen} <= {True, False}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"options": {"learning_rat": 1.0}}, "SFTConfig .* has no such field; did you mean learning_rate?"),
        ({"options": {"output_dir": "x"}}, "options.output_dir is set by alignkit"),
        ({"reward": {"kind": "lexicon"}}, "reward goes with trainer: grpo or rloo"),
        ({"model": {"path": "base", "load_in_4bit": True}}, "lora"),
    ],
)
def test_what_trl_does_not_have_is_refused(folder: Path, tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        start(trl, tmp_path / "run", config(folder, "sft", **changes))


@pytest.mark.parametrize("trainer", ["dpo", "kto", "grpo", "rloo"])
@pytest.mark.parametrize("how", ["merged", "new tokens"])
def test_at_its_first_step_the_policy_is_its_reference(folder: Path, tmp_path: Path, trainer: str, how: str) -> None:
    """Also where its weights lie nowhere on disk: a base merged with an adapter, or with rows for new tokens."""
    base = checkpoint(tmp_path / "base")
    if how == "merged":
        policy = load_policy(ModelOptions(path=str(base), lora=LoraOptions(r=2)), seed=0)
        for name, weight in policy.own_weights().items():
            if "lora_B" in name:
                torch.nn.init.normal_(weight)
        save_policy(policy, format_of(base), tmp_path / "adapter")
        model: dict[str, Any] = {"path": str(tmp_path / "adapter")}
    else:
        model = {"path": str(without_marks(base)), "chat_template": "chatml"}
    beta = {"beta": 0.1} if trainer in ("grpo", "rloo") else {}
    options = (ONLINE if beta else COMMON) | {"max_steps": 1, **beta}
    run = start(trl, tmp_path / "run", config(folder, trainer, model=model, options=options))
    first = next(line for line in metrics(run) if line["step"] == 1 and "loss" in line)
    apart = first["rewards/chosen"] if trainer in ("dpo", "kto") else first["kl"]
    assert apart == pytest.approx(0.0, abs=1e-5)
    assert not (run.directory / "reference").exists()


def test_adapters_with_rows_for_new_tokens_are_trained(folder: Path, tmp_path: Path) -> None:
    """The loss of the first step is the negative log-likelihood of the policy as a stage of ours loads it."""
    base = without_marks(checkpoint(tmp_path / "base"))
    model = {"path": str(base), "chat_template": "chatml", "lora": {"r": 2}}
    data = {"path": write(tmp_path / "data.jsonl", demonstrations(4)), "validation": 0}
    settings = config(folder, "sft", model=model, data=data, options=COMMON | {"max_steps": 1})
    run = start(trl, tmp_path / "run", settings)
    setting = open_setting(settings.model, QUIET)
    records = [Demonstration.model_validate(row) for row in demonstrations(4)]
    examples = sequences_of(setting.format, records)
    policy = setting.policy(settings.model, 0)
    expected = accumulate(policy, rows_of(examples, 4096), likelihood_objective(), backward=False)["nll"]
    assert next(line["loss"] for line in metrics(run) if "loss" in line) == pytest.approx(float(expected), abs=1e-4)
    before, after = policy.own_weights(), load_policy(ModelOptions(path=str(run.model_dir), adapter="continue"))
    assert any(not torch.equal(before[name], weight) for name, weight in after.own_weights().items())


def test_tools_and_cut_answers_are_tokens_as_in_other_stages(folder: Path, tmp_path: Path) -> None:
    """In rows after one without tools, with arguments of several types: what a table of columns would lose."""
    call, other = {"name": "f", "arguments": {"x": 1}}, {"name": "f", "arguments": {"x": "one", "y": 0.5}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    rows = [
        {"messages": [message("user", "why"), message("assistant", "who knows")]},
        *(
            {"messages": [message("user", "why"), {"role": "assistant", "tool_calls": [one]}], "tools": tools}
            for one in (call, other)
        ),
        {"messages": [message("user", "why"), message("assistant", "it was") | {"finished": False}]},
    ]
    seen: list[dict[str, Any]] = []

    class Seen(TRAINERS["sft"][0]):
        def train(self, *arguments: Any, **options: Any) -> Any:
            seen.extend(self.train_dataset)
            return super().train(*arguments, **options)

    calls = "{% for call in m.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}"
    template = "{% if tools %}<tools>{{ tools | tojson }}</tools>{% endif %}" + TEMPLATE
    (tmp_path / "template.jinja").write_text(template.replace("{{ m.content", calls + "{{ (m.content or '')"))
    model = {"path": str(folder / "base"), "chat_template": str(tmp_path / "template.jinja")}
    data = {"path": write(tmp_path / "data.jsonl", rows), "validation": 0}
    settings = config(folder, "sft", model=model, data=data, options=COMMON | {"max_steps": 1})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TRAINERS, "sft", (Seen, *TRAINERS["sft"][1:]))
        start(trl, tmp_path / "run", settings)
    format = open_setting(settings.model, QUIET).format
    expected = sequences_of(format, [Demonstration.model_validate(row) for row in rows])
    assert sorted(row["input_ids"] for row in seen) == sorted(list(one.ids) for (one,) in expected)
    told = [format.tokenizer.decode(row["input_ids"]) for row in seen]
    assert sum("<tools>" in text for text in told) == 2 and sum('"x": "one"' in text for text in told) == 1
    (cut,) = [row for row, text in zip(seen, told, strict=True) if "it was" in text]
    assert not any("null" in text for text in told) and cut["labels"][-1] == -100 != cut["labels"][-2]


def test_telemetry_is_off(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", False)
    monkeypatch.delenv("CI", raising=False)  # where TRL sends nothing by itself
    asked: list[bool] = []

    def send(*_: Any, **__: Any) -> None:
        asked.append(constants.HF_HUB_DISABLE_TELEMETRY)

    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", send)
    start(trl, tmp_path / "run", config(folder, "sft", options=COMMON | {"max_steps": 1}))
    assert asked == [True]


def test_a_reward_s_failure_saves_what_was_trained(folder: Path, tmp_path: Path) -> None:
    settings, calls = config(folder, "grpo", options=ONLINE | {"max_steps": 3}), list[int]()

    def reward(completions: list[Completion]) -> Scores:
        calls.append(1)
        return Scores(total=(float("nan") if len(calls) == 3 else 1.0, *[0.5] * (len(completions) - 1)))

    run = Run.open(tmp_path / "run", "trl", settings, QUIET, id="test")
    with pytest.raises(RewardFailure, match=r"not a number|nan"):
        trl.run(settings, QUIET, run, reward)
    kept = run.latest_checkpoint()
    assert kept is not None and kept.name == "checkpoint-2"
    again = Run.open(tmp_path / "run", "trl", settings, QUIET, id="test")
    trl.run(settings, QUIET, again, reward)
    assert [line["step"] for line in metrics(again) if "loss" in line] == [1, 2, 3]


def test_what_a_trainer_refuses_names_the_options(folder: Path, tmp_path: Path) -> None:
    data = {"path": str(folder / "sft.jsonl"), "validation": 0}
    settings = config(folder, "sft", data=data, options=COMMON | {"eval_strategy": "steps"})
    with pytest.raises(InputError, match=r"options: TRL's trainer sft refuses them: .*eval"):
        start(trl, tmp_path / "run", settings)
