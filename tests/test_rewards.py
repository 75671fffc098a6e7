"""Rewards made from options: the learned one against plain passes, code only where it is allowed."""

import importlib.util
import json
import sqlite3
import sys
import time
import types
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from http_server import serving
from transformers import AutoModelForCausalLM

from alignkit.averaging import averaged_scorer
from alignkit.chat import ChatFormat
from alignkit.config import Config, InputError, build
from alignkit.judging import asked, local_judge
from alignkit.models import load_tokenizer
from alignkit.options.evaluate import EvaluateConfig
from alignkit.options.guard import HeldOutReward
from alignkit.options.reward_source import RewardSource
from alignkit.options.shared import ModelOptions
from alignkit.options.trl import TrlConfig
from alignkit.records import Completion, Message, ToolCall
from alignkit.rewards import build_reward
from alignkit.scorer import load_scorer, save_scorer
from reward_models.judge import CUT
from reward_models.running import Running


def completion(text: str, **columns: object) -> Completion:
    return Completion(
        prompt=(Message(role="user", content="what?"),),
        response=Message(role="assistant", content=text),
        columns=dict(columns),
    )


def source(**options: object) -> RewardSource:
    return build(RewardSource, options, "reward")


JUDGE: dict[str, object] = {"kind": "judge", "guidelines": "guide.txt", "path": "folder"}
ASKED: dict[str, object] = {"kind": "judge", "guidelines": "guide.txt", "url": "http://there/v1", "model": "small"}


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
        ({"kind": "combined", "of": {"raw": {"kind": "lexicon"}}}, "'raw' cannot be a part's name"),
        ({"kind": "combined", "of": {"a/b": {"kind": "lexicon"}}}, "'a/b' cannot be a part's name"),
        ({"kind": "combined", "of": {"a": {"kind": "learned"}}}, "learned needs reward.path"),
        ({"kind": "rules", "rule": "number", "conversational": True}, "conversational has no meaning for kind: rules"),
        ({"kind": "rules", "rule": "json_schema"}, "rule: json_schema, which needs it"),
        ({"kind": "rules", "rule": "number", "json_schema": {}}, r"reward\.json_schema goes with rule: json_schema"),
        ({"kind": "rules", "rule": "number", "wanted_column": "x"}, "wanted_column has no meaning with rule: number"),
        ({"kind": "remote"}, r"remote needs reward\.url"),
        ({"kind": "remote", "url": "localhost:80"}, "is no http:// or https:// address"),
        ({"kind": "remote", "url": "http://me:secret@there/"}, r"keys stand in the environment"),
        ({"kind": "remote", "url": "http://there", "model": "x"}, "model has no meaning for kind: remote"),
        ({"kind": "lexicon", "timeout": 3.0}, "timeout has no meaning for kind: lexicon"),
        ({"kind": "rules", "rule": "number", "timeout": 3.0}, "timeout has no meaning with rule: number"),
        ({"kind": "world", "on_failure": "skip"}, "on_failure has no meaning for kind: world"),
        ({"kind": "judge", "url": "http://there", "model": "x"}, r"judge needs reward\.guidelines"),
        (JUDGE | {"path": None}, r"either reward\.path or reward\.url and reward\.model"),
        (JUDGE | {"url": "http://there"}, r"either reward\.path or reward\.url and reward\.model"),
        (JUDGE | {"timeout": 3.0}, "timeout has no meaning with a local judge"),
        (JUDGE | {"points": [3, 3]}, r"reward\.points: \[3, 3\] must rise"),
        (ASKED | {"key_variable": "sk-123"}, "no environment variable's name; it never holds the key"),
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


def test_rules_that_libraries_verify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusing = source(kind="rules", rule="refusal", scale=-1.0)
    assert build_reward(refusing)([completion("I can't help with that."), completion("4")]).total == (-1, 0)
    wanted = source(kind="rules", rule="refusal", wanted_column="unsafe")
    assert build_reward(wanted)([completion("I can't help with that.", unsafe=True)]).total == (1,)
    if importlib.util.find_spec("jsonschema") and importlib.util.find_spec("math_verify"):
        form = build_reward(source(kind="rules", rule="json_schema", json_schema={"type": "integer"}))
        assert form([completion("3"), completion("x")]).total == (1, 0)
        equal = build_reward(source(kind="rules", rule="math", answer_column="key"))
        assert equal([completion("so 0.5", key="1/2")]).total == (1,)
    monkeypatch.setattr("alignkit.options.shared.find_spec", lambda name: None)
    for rule, more in (("math", {}), ("json_schema", {"json_schema": "form.json"})):
        with pytest.raises(
            InputError, match=rf'rule: {rule} needs the package \w+; run pip install "alignkit\[eval\]"'
        ):
            source(kind="rules", rule=rule, **more)


def test_rules_take_a_time_limit(caplog: pytest.LogCaptureFixture) -> None:
    """Patterns and comparisons that would take hours: a second is the default of the one, five that of the other."""
    matching = build_reward(source(kind="rules", rule="pattern", pattern="^(a|aa)+$", timeout=0.1))
    assert matching([completion("a" * 60 + "!"), completion("a")]).total == (0, 1)
    assert "no match of '^(a|aa)+$' within 0.1 s: " in caplog.text
    if importlib.util.find_spec("math_verify"):
        started = time.monotonic()
        equal = build_reward(source(kind="rules", rule="math", timeout=0.5))
        assert equal([completion("$10^{10^{10^{10}}}$", answer="5")]).total == (0,)
        assert time.monotonic() - started < 4


def test_a_server_and_a_judge_behind_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "guide.txt").write_text("Be brief.")

    def answers(number: int, body: dict[str, Any]) -> tuple[int, Any]:
        if "responses" in body:
            return 200, {"scores": [len(text) for text in body["responses"]]}
        said = body["messages"][0]["content"]
        score = 9 if "Be brief." in said and "<answer>\nyes\n" in said else 12
        return 200, {"choices": [{"message": {"content": f"Hm.\nScore: {score}"}}]}

    asked = [completion("yes"), completion("no, never")]
    with serving(answers) as served:
        remote = build_reward(source(kind="remote", url=served.url, batch_size=1, scale=2.0))
        assert remote(asked).total == (6, 18) and len(served.asked) == 2
        options = ASKED | {"url": served.url, "guidelines": str(tmp_path / "guide.txt"), "key_variable": "MY_KEY"}
        with pytest.raises(
            InputError, match=r"reward\.key_variable: the environment variable that it names is not set"
        ):
            build_reward(source(**options))
        monkeypatch.setenv("MY_KEY", "secret")
        skips = build_reward(source(**options, on_failure="skip", cache=str(tmp_path / "kept"), scale=0.5))
        for _ in range(2):
            assert skips(asked).total == (4.5, None)
        assert len(served.asked) == 5 and served.headers[-1]["Authorization"] == "Bearer secret"
        assert not any(b"secret" in path.read_bytes() for path in (tmp_path / "kept").iterdir())
        with pytest.raises(
            InputError, match=r"completion 1 is missing: the judge's answer .* 'Score: 12': 'no, never'"
        ):
            build_reward(source(**options))(asked)
    with pytest.raises(InputError, match=r"reward\.guidelines: guide\.txt: cannot be read"):
        build_reward(source(**ASKED))


def test_a_local_judge_is_the_model_itself_asked_greedily(tmp_path: Path) -> None:
    """Against transformers' own greedy generation."""
    tiny.checkpoint(tmp_path / "judge")
    words = tiny.tokenizer()
    words.chat_template = "{% for m in messages %}{{ m.content }}{{ eos_token if m.role == 'assistant' }}{% endfor %}"
    words.save_pretrained(tmp_path / "judge")
    ask = local_judge(str(tmp_path / "judge"), max_new_tokens=6, token_budget=64)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "judge")
    expected = []
    for text in ("say a", "say b?"):
        ids = torch.tensor([words(text)["input_ids"]])
        written = model.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :].tolist()
        text = words.decode([one for one in written if one != words.eos_token_id])
        expected.append(text if words.eos_token_id in written else text + CUT)
    assert ask([[{"role": "user", "content": text}] for text in ("say a", "say b?")]) == expected
    (tmp_path / "guide.txt").write_text("Be brief.")
    options = {"guidelines": str(tmp_path / "guide.txt"), "max_new_tokens": 3, "on_failure": "skip"}
    reward = build_reward(source(kind="judge", path=str(tmp_path / "judge"), **options))
    assert reward([completion("yes")]).total == (None,)


def test_a_local_judges_answers_are_remembered_by_its_weights(tmp_path: Path) -> None:
    words = tiny.tokenizer()
    words.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    (tmp_path / "guide.txt").write_text("Be brief.")
    given = {"path": str(tmp_path / "judge"), "guidelines": str(tmp_path / "guide.txt"), "max_new_tokens": 4}
    found: list[str] = []
    for seed in (0, 1, 0):
        tiny.checkpoint(tmp_path / "judge", seed=seed)
        words.save_pretrained(tmp_path / "judge")
        bare, kept = (
            asked(source(kind="judge", **given, **more), "reward", bool)
            for more in ({}, {"cache": str(tmp_path / "c")})
        )
        told = [{"role": "user", "content": "say a"}]
        found += kept([told])
        assert found[-1:] == bare([told])
    assert found[0] == found[2] != found[1]
    with closing(sqlite3.connect(tmp_path / "c/answers.sqlite")) as answers:
        assert answers.execute("SELECT count(*) FROM answers").fetchone() == (2,)


def test_parts_are_normalised_before_they_are_weighed() -> None:
    running = Running()
    happy = {"kind": "lexicon", "normalise": "running", "scale": 3.0, "clip": 2.5}
    brief = {"kind": "rules", "rule": "length", "length": 4}
    made = source(kind="combined", of={"mood": happy, "brevity": brief})
    asked = [completion("happy"), completion("sad"), completion("so")]
    scores = build_reward(made, running=running)(asked)
    raw = torch.tensor(build_reward(source(kind="lexicon"))(asked).total)
    expected = (3 * (raw - raw.mean()) / raw.std(correction=0)).clamp(-2.5, 2.5)
    assert scores.parts["mood"] == pytest.approx(expected.tolist())
    assert scores.parts["mood/raw"] == pytest.approx(raw.tolist())
    assert scores.total == pytest.approx((expected - 1).tolist())
    assert sorted(running.memory) == ["number of reward/mood", "squares of reward/mood", "sum of reward/mood"]


def test_skipping_and_remembering_are_for_the_reward_of_ppo(tmp_path: Path) -> None:
    data = {"path": "prompts.jsonl"}
    inside = {"kind": "combined", "of": {"a": {"kind": "lexicon", "normalise": "running"}}}
    skips = {"kind": "remote", "url": "http://there", "on_failure": "skip"}
    places: list[tuple[type[Config], dict[str, object], str]] = [
        (EvaluateConfig, {"models": ["m"], "data": data, "gold": skips}, "gold: on_failure: skip"),
        (EvaluateConfig, {"models": ["m"], "data": data, "reward": inside}, r"reward\.of\.a: normalise: running"),
        (TrlConfig, {"model": {"path": "m"}, "data": data, "trainer": "grpo", "reward": skips}, "on_failure: skip"),
        (HeldOutReward, {"reward": inside, "drop": 1.0}, r"guard\.held_out\.reward\.of\.a: normalise: running"),
    ]
    for config, options, message in places:
        with pytest.raises(InputError, match=f"{message} is for the reward of ppo; remove it"):
            build(config, options, "")


def test_reward_models_averaged_by_their_weights(tmp_path: Path) -> None:
    """Members that differ in the head alone are a mean of scores; the trunk's weights are the mean of each."""
    tiny.checkpoint(tmp_path / "base")
    format = ChatFormat.load(load_tokenizer(str(tmp_path / "base")), "none", tiny.END)
    for seed in (1, 2, 3):
        scorer = load_scorer(ModelOptions(path=str(tmp_path / "base")), seed=seed)
        scorer.mean.fill_(0.1 * seed)
        scorer.deviation.fill_(float(seed))
        if seed == 3:
            with torch.no_grad():
                scorer.model.get_input_embeddings().weight.mul_(1.5)
        save_scorer(scorer, format, tmp_path / f"r{seed}")
    asked = [completion("yes"), completion("no and no")]

    def members(*seeds: int, **options: Any) -> dict[str, object]:
        return {f"r{seed}": {"kind": "learned", "path": str(tmp_path / f"r{seed}")} | options for seed in seeds}

    for options in ({}, {"normalised": False}):
        of = members(1, 2, **options)
        by_weight = build_reward(source(kind="combined", of=of, combine="weights", scale=2.0))(asked)
        by_score = build_reward(source(kind="combined", of=of, combine="mean", scale=2.0))(asked)
        assert by_weight.total == pytest.approx(by_score.total, abs=1e-5) and not by_weight.parts
    three = averaged_scorer([str(tmp_path / f"r{seed}") for seed in (1, 2, 3)], normalised=False)
    states = [load_scorer(ModelOptions(path=str(tmp_path / f"r{seed}"))).state_dict() for seed in (1, 2, 3)]
    for name, value in three.state_dict().items():
        assert torch.allclose(value, torch.stack([state[name] for state in states]).mean(0), atol=1e-6), name
    tiny.checkpoint(tmp_path / "wide", width=64)
    wide = load_scorer(ModelOptions(path=str(tmp_path / "wide")), seed=1)
    save_scorer(wide, ChatFormat.load(load_tokenizer(str(tmp_path / "wide")), "none", tiny.END), tmp_path / "r4")
    with pytest.raises(InputError, match="is of another architecture than"):
        build_reward(source(kind="combined", of=members(1, 4), combine="weights"))
    for of, said in (
        (members(1, 2, scale=2.0), r"reward\.of\.r1: combine: weights takes learned rewards that give nothing but"),
        ({**members(1), "a": {"kind": "lexicon"}}, r"reward\.of\.a: combine: weights takes learned rewards"),
        ({**members(1), **members(2, normalised=False)}, "all are normalised, or none"),
        (members(1), "weights needs two rewards or more"),
    ):
        with pytest.raises(InputError, match=said):
            source(kind="combined", of=of, combine="weights")
