"""TRL's trainers as stages: the weights are those of TRL run by hand, and what surrounds them is ours."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_cases import QUIET, checkpoint, demonstrations, message, metrics, rankings, start, write
from datasets import Dataset
from test_kto import feedback
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from alignkit.config import InputError, build
from alignkit.models import load_policy
from alignkit.options.shared import ModelOptions
from alignkit.options.trl import TrlConfig
from alignkit.records import Completion, Demonstration, Message, Scores, ToolCall
from alignkit.runs import Run
from alignkit.stages import trl
from alignkit.trl_rows import rows_of

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


def test_the_weights_are_those_of_trl_alone(folder: Path, tmp_path: Path) -> None:
    run = start(
        trl, tmp_path / "run", config(folder, "sft", data={"path": str(folder / "sft.jsonl"), "validation": 0})
    )
    rows = []
    for example in demonstrations(16):
        turns = [{"role": turn["role"], "content": turn["content"]} for turn in example["messages"]]
        rows.append({"prompt": turns[:-1], "completion": turns[-1:]})
    model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32, attn_implementation="sdpa")
    arguments = SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to=[], seed=0, **COMMON)
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    SFTTrainer(model, arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer).train()
    ours = AutoModelForCausalLM.from_pretrained(run.model_dir).state_dict()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=0)


def test_adapters_are_trained_and_saved(folder: Path, tmp_path: Path) -> None:
    settings = config(folder, "dpo", model={"path": str(folder / "base"), "lora": {"r": 2}})
    run = start(trl, tmp_path / "run", settings)
    assert (run.model_dir / "adapter_model.safetensors").is_file()
    load_policy(ModelOptions(path=str(run.model_dir)))


def test_tools_thoughts_and_the_templates_arguments_reach_trl() -> None:
    tools = ({"type": "function", "function": {"name": "f"}},)
    call = ToolCall(name="f", arguments={"x": 1})
    turns = (
        Message(role="user", content="q"),
        Message(role="assistant", tool_calls=(call,)),
        Message(role="tool", content="1", name="f", tool_call_id="call00001"),
        Message(role="assistant", content="a", reasoning="because"),
    )
    (row,) = rows_of(Demonstration(messages=turns, tools=tools), 0, {"enable_thinking": False})
    assert row["chat_template_kwargs"] == {"enable_thinking": False} and json.loads(row["tools"]) == list(tools)
    assert row["completion"][0] | {"role": "", "content": ""} == {
        "role": "", "content": "", "reasoning_content": "because", "thinking": "because",
    }  # fmt: skip
    assert row["prompt"][1]["tool_calls"][0]["function"] == {"name": "f", "arguments": {"x": 1}}
    assert row["prompt"][2] == {"role": "tool", "content": "1", "name": "f", "tool_call_id": "call00001"}
    assert "tools" not in rows_of(Demonstration(messages=(turns[0], turns[-1])), 0)[0]


def test_prompts_with_tools_are_not_for_grpo(folder: Path, tmp_path: Path) -> None:
    rows = [{"prompt": [message("user", f"why {n}?")], "tools": [{"type": "function"}]} for n in range(6)]
    write(tmp_path / "tools.jsonl", rows)
    settings = config(folder, "grpo", data={"path": str(tmp_path / "tools.jsonl"), "validation": 0})
    with pytest.raises(
        InputError, match=r"trainer: grpo takes no prompts with tools, and 'why \d\?' has some; use ppo"
    ):
        start(trl, tmp_path / "run", settings)


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
