"""Rewards made from options: the learned one against plain passes, code only where it is allowed."""

import json
import sys
import types
from pathlib import Path

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM

from alignkit.chat import ChatFormat
from alignkit.config import InputError, build
from alignkit.models import load_tokenizer
from alignkit.options.reward_source import RewardSource
from alignkit.options.shared import ModelOptions
from alignkit.records import Completion, Message, ToolCall
from alignkit.rewards import build_reward
from alignkit.scorer import load_scorer, save_scorer


def completion(text: str, **columns: object) -> Completion:
    return Completion(
        prompt=(Message(role="user", content="what?"),),
        response=Message(role="assistant", content=text),
        columns=dict(columns),
    )


def source(**options: object) -> RewardSource:
    return build(RewardSource, options, "reward")


def test_learned_reward_reads_the_end_of_turn_token(tmp_path: Path) -> None:
    tiny.checkpoint(tmp_path / "base")
    format = ChatFormat.load(load_tokenizer(str(tmp_path / "base")), "none", tiny.END)
    scorer = load_scorer(ModelOptions(path=str(tmp_path / "base")), seed=3)
    scorer.mean.fill_(0.5)
    scorer.deviation.fill_(2.0)
    save_scorer(scorer, format, tmp_path / "reward")
    trunk = AutoModelForCausalLM.from_pretrained(tmp_path / "base").model
    words = tiny.tokenizer()
    expected = []
    for text in ("yes", "no and no", "y"):
        ids = torch.tensor([words("what?" + text)["input_ids"] + [words.eos_token_id]])
        with torch.no_grad():
            expected.append(scorer.head(trunk(ids).last_hidden_state[0, -1]).item())
    completions = [completion(text) for text in ("yes", "no and no", "y")]
    raw = build_reward(source(kind="learned", path=str(tmp_path / "reward"), normalised=False))
    assert raw(completions).total == pytest.approx(expected, abs=1e-5)
    small = build_reward(source(kind="learned", path=str(tmp_path / "reward"), scale=3.0), token_budget=16)
    assert small(completions).total == pytest.approx([3 * (e - 0.5) / 2 for e in expected], abs=1e-5)
    with pytest.raises(InputError, match="name the artifact of a reward stage"):
        build_reward(source(kind="learned", path=str(tmp_path / "base")))


def test_what_the_template_leaves_out_is_scored_without_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiny.checkpoint(tmp_path / "base")
    format = ChatFormat.load(load_tokenizer(str(tmp_path / "base")), "none", tiny.END)
    save_scorer(load_scorer(ModelOptions(path=str(tmp_path / "base")), seed=3), format, tmp_path / "reward")
    reward = build_reward(source(kind="learned", path=str(tmp_path / "reward")))
    plain = completion("yes")
    odd = Message(role="assistant", content="yes", reasoning="hm", tool_calls=(ToolCall(name="f"),))
    bare, called = reward([plain, plain.model_copy(update={"response": odd})]).total
    assert called == pytest.approx(bare, abs=1e-6) and bare != 0
    said = sorted(message.rpartition("leaves out ")[2].partition(";")[0] for message in caplog.messages)
    assert said == ["assistant.reasoning", "assistant.tool_calls.name"]


def test_rules_lexicon_scale_and_clip(tmp_path: Path) -> None:
    rule = build_reward(source(kind="rules", rule="number", scale=2.0))
    assert rule([completion("it is 12", answer="#### 12"), completion("13", answer="12")]).total == (2.0, 0.0)
    (tmp_path / "words.json").write_text(json.dumps({"good": 3.0, "bad": -1.0}))
    words = build_reward(source(kind="lexicon", path=str(tmp_path / "words.json"), clip=0.6))
    assert words([completion("good"), completion("bad"), completion("so")]).total == (0.6, -0.5, 0.0)
    form = build_reward(source(kind="rules", rule="pattern", pattern=r"\A<answer>.+</answer>\Z"))
    assert form([completion("<answer>4</answer>"), completion("<answer>4</answer>!")]).total == (1.0, 0.0)
    four = build_reward(source(kind="rules", rule="length", length=4))
    three, six = (completion("x").model_copy(update={"ids": (1,) * n}) for n in (3, 6))
    assert four([three, six]).total == (-0.25, -0.5)


def test_code_runs_only_where_it_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("own_rewards")
    module.short = lambda completions, **columns: [-float(len(text)) for text in completions]  # type: ignore[attr-defined]
    module.chatty = lambda completions, **columns: [  # type: ignore[attr-defined]
        float(prompt[-1]["content"] == "what?") + len(completion[0]["content"])
        for prompt, completion in zip(columns["prompts"], completions, strict=True)
    ]
    monkeypatch.setitem(sys.modules, "own_rewards", module)
    named = source(kind="function", path="own_rewards:short")
    with pytest.raises(InputError, match="is code; add --allow-code"):
        build_reward(named)
    assert build_reward(named, allow_code=True)([completion("abc")]).total == (-3.0,)
    chatty = source(kind="function", path="own_rewards:chatty", conversational=True)
    assert build_reward(chatty, allow_code=True)([completion("abc"), completion("")]).total == (4.0, 1.0)
    with pytest.raises(InputError, match="cannot be imported"):
        build_reward(source(kind="function", path="own_rewards:none"), allow_code=True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kind": "learned"}, "learned needs reward.path"),
        ({"kind": "world", "path": "x"}, "no meaning for kind: world"),
        ({"kind": "lexicon", "normalised": False}, "normalised has no meaning for kind: lexicon"),
        ({"kind": "combined", "of": {"a": {"kind": "lexicon"}}, "deviations": 2.0}, "deviations has no meaning"),
        (
            {"kind": "combined", "of": {"a": {"kind": "lexicon", "pth": "x"}}},
            r"of\.a\.pth: unknown key; did you mean `path`",
        ),
        ({"kind": "rules"}, "kind: rules needs one"),
        ({"kind": "function", "path": "x.py"}, "not of the form package.module:function"),
        ({"kind": "lexicon", "clip": -1.0}, "clip must be above 0"),
        ({"kind": "rules", "rule": "pattern"}, "rule: pattern, which needs it"),
        ({"kind": "rules", "rule": "number", "length": 4}, "reward.length goes with rule: length"),
        ({"kind": "rules", "rule": "repetition"}, "rule: length or repetition, which needs it"),
        ({"kind": "combined"}, "kind: combined, which needs it"),
        ({"kind": "combined", "of": {"a": {"kind": "lexicon"}}, "combine": "min"}, "min needs two rewards or more"),
        ({"kind": "combined", "of": {"a": {"kind": "learned"}}}, "learned needs reward.path"),
        ({"kind": "rules", "rule": "number", "conversational": True}, "conversational has no meaning for kind: rules"),
    ],
)
def test_options_that_make_no_reward(options: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        source(**options)


def test_a_combined_reward_is_built_of_its_sources() -> None:
    happy = {"kind": "lexicon", "scale": 2.0}
    brief = {"kind": "rules", "rule": "length", "length": 4}
    built = build_reward(source(kind="combined", of={"mood": happy, "brevity": brief}, scale=10.0, clip=15.0))
    asked = [completion("happy"), completion("sad")]
    scores = built(asked)
    mood = build_reward(source(**happy))(asked).total
    assert scores.parts["mood"] == mood and scores.parts["brevity"] == (-1.0, -1.0)
    assert scores.total == pytest.approx([max(-15, min(15, 10 * (m - 1))) for m in mood])
    nested = source(kind="combined", of={"x": {"kind": "combined", "of": {"y": happy, "z": brief}}, "w": happy})
    assert [leaf.kind for leaf in nested.leaves()] == ["lexicon", "rules", "lexicon"]
