"""`alignkit chat` in an environment: scripted turns with the calculator, what is shown and what is remembered."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from environment_cases import Scripted, call_of, checkpoint

from alignkit.chat import ChatFormat
from alignkit.cli import main
from alignkit.environment import episodes
from alignkit.models import load_tokenizer

CALCULATOR = "{kind: tools, tools: [calculator], announce: false, max_tokens: 40}"
CALL = '{"name": "calculator", "arguments": {"expression": "3*4"}}'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with the template that it is spoken to by."""
    place = tmp_path_factory.mktemp("chat") / "calls"
    checkpoint(place)
    ChatFormat.load(load_tokenizer(str(place)), "chatml").tokenizer.save_pretrained(place)
    return place


@pytest.fixture
def contexts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Sampling calls the calculator and repeats what it says; here is what each turn was drawn from."""
    seen: list[str] = []
    scripted = Scripted(calls=[call_of("3*4")])

    def sample(policy: Any, format: ChatFormat, given: Sequence[list[int]], keys: Any, **draws: Any) -> Any:
        seen.extend(format.tokenizer.decode(context) for context in given)
        return scripted(policy, format, given, keys, **draws)

    monkeypatch.setattr(episodes, "sample", sample)
    return seen


def chat(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["chat", *words])
    return int(ended.value.code or 0)


def test_turns_between_are_shown_and_stay_in_the_conversation(
    folder: Path, contexts: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = iter(["3*4", "5", ""])
    monkeypatch.setattr("builtins.input", lambda prompt: next(asked))
    assert chat(str(folder), "--environment", CALCULATOR) == 0
    assert capsys.readouterr().out.splitlines() == [f"assistant: {CALL}", "tool: 12", "12", "12"]
    turns = ("user\n3*4", f"assistant\n<tool_call>{CALL}</tool_call>", "tool\n12", "assistant\n12", "user\n5")
    spelled = "".join(f"<|im_start|>{turn}<|im_end|>\n" for turn in turns) + "<|im_start|>assistant\n"
    assert len(contexts) == 3 and contexts[-1] == spelled


def test_one_answer_as_json_holds_its_turns(
    folder: Path, contexts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert chat(str(folder), "--environment", CALCULATOR, "--prompt", "3*4", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["response"], told["finished"]) == ("12", True)
    assert [(turn["role"], turn["content"]) for turn in told["turns"]] == [("assistant", ""), ("tool", "12")]
    assert told["turns"][0]["tool_calls"][0]["arguments"] == {"expression": "3*4"}


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ("calculator", "--environment: 'calculator' is no mapping, such as {kind: tools"),
        ("{kind: tools, tool: [calculator]}", "environment.tool: unknown key; did you mean `tools`?"),
        ("{kind: function, path: 'environment_cases:curious'}", "--allow-code"),
    ],
)
def test_a_wrong_environment_is_one_error(
    folder: Path, capsys: pytest.CaptureFixture[str], environment: str, message: str
) -> None:
    assert chat(str(folder), "--environment", environment, "--prompt", "3*4") == 2
    assert message in " ".join(capsys.readouterr().err.split())
