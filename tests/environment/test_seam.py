"""Tools and functions as environments: what they answer, what they announce, and how they fail."""

import sys
import time
from collections.abc import Sequence
from functools import partial
from types import ModuleType
from typing import Any

import pytest

from alignkit.config import InputError, build
from alignkit.environment.calculator import calculator
from alignkit.environment.seam import EnvironmentFailure, announced, build_environment
from alignkit.environment.tools import counted, tools
from alignkit.options.environment import EnvironmentOptions
from alignkit.records import Completion, Message, Prompt, ToolCall

USER = Message(role="user", content="?")


def said(*calls: ToolCall, **more: Any) -> Completion:
    return Completion(prompt=(USER,), response=Message(role="assistant", content="so", tool_calls=calls), **more)


def call(expression: Any, name: str = "calculator", key: str = "expression") -> ToolCall:
    return ToolCall(name=name, arguments={key: expression}, id="call00001")


def options(**given: Any) -> EnvironmentOptions:
    return build(EnvironmentOptions, given, "")


def test_each_call_is_answered_in_its_place() -> None:
    def weather(town: str, days: int = 1) -> dict[str, Any]:
        return {"town": town, "wet": [True] * days}

    respond = tools({"calculator": calculator, "weather": weather})
    second = ToolCall(name="weather", arguments={"town": "Bergen", "days": 2}, id="call00002")
    first, other = respond(said(call("2*3"), second))
    assert first == Message(role="tool", content="6", name="calculator", tool_call_id="call00001")
    assert other.content == '{"town": "Bergen", "wet": [true, true]}' and other.tool_call_id == "call00002"
    assert respond(said()) is None


@pytest.mark.parametrize(
    ("made", "fault"),
    [
        (call("1/0"), "Error: division by zero"), (call(3), "Error: the expression must be text"),
        (call("1", name="rm"), "Error: there is no tool 'rm', only calculator, slow"),
        (call("1", key="text"), "unexpected keyword argument 'text'"),
        (call("1", name="slow", key="x"), "within 0.05 s"),
        (ToolCall(name="calculator"), "missing 1 required positional argument"),
    ],
)  # fmt: skip
def test_a_call_that_fails_is_answered_too(made: ToolCall, fault: str) -> None:
    (answer,) = tools({"calculator": calculator, "slow": lambda x: time.sleep(0.5)}, timeout=0.05)(said(made))
    assert answer.content.startswith("Error: ") and fault in answer.content


def test_a_tool_that_ends_the_process_has_failed() -> None:
    for timeout in (None, 5.0):
        (answer,) = tools({"calculator": lambda expression: sys.exit(2)}, timeout=timeout)(said(call("1")))
        assert answer.content == "Error: 2"


def test_an_answer_that_is_no_text_becomes_one() -> None:
    (answer,) = tools({"calculator": lambda expression: "a\ud83d"})(said(call("1")))
    assert answer.content == "a?"


def test_tools_have_names_of_their_own(mine: ModuleType) -> None:
    mine.calculator, mine.part = lambda expression: "", partial(int)  # pyright: ignore[reportAttributeAccessIssue]
    mine.calculator.__name__ = "calculator"
    for name, fault in (("calculator", "a second tool of the name 'calculator'"), ("part", "no function with a name")):
        given = options(kind="tools", tools=["calculator", f"my_environment:{name}"])
        with pytest.raises(InputError, match=rf"environment\.tools: my_environment:{name} is {fault}; wrap it"):
            build_environment(given, allow_code=True)


def test_an_episode_is_counted() -> None:
    assert counted(said()) == {"turns": 1, "tool_calls": 0, "failed_calls": 0}
    asked = Message(role="assistant", tool_calls=(call("1"), call("x")))
    answers = (Message(role="tool", content="1"), Message(role="tool", content="Error: only numbers"))
    turns = (asked, *answers, Message(role="assistant", content="Error: mine"), USER)
    assert counted(said(turns=turns)) == {"turns": 3, "tool_calls": 2, "failed_calls": 1}


def test_prompts_without_tools_get_the_schemas() -> None:
    own = ({"type": "function", "function": {"name": "mine"}},)
    prompts = [Prompt(messages=(USER,)), Prompt(messages=(USER,), tools=own)]
    first, second = announced(prompts, options(kind="tools", tools=["calculator"]), False)
    assert second.tools == own and first.tools is not None
    function = first.tools[0]["function"]
    assert function["name"] == "calculator" and function["parameters"]["required"] == ["expression"]
    assert function["parameters"]["properties"]["expression"]["type"] == "string"
    assert announced(prompts, options(kind="tools", tools=["calculator"], announce=False), False) == prompts


@pytest.fixture
def mine(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("my_environment")
    monkeypatch.setitem(sys.modules, "my_environment", module)
    return module


def test_a_function_of_ones_own(mine: ModuleType) -> None:
    def respond(completion: Completion) -> Sequence[Any] | None:
        return None if completion.columns["end"] else [{"role": "user", "content": completion.response.content + "!"}]

    mine.respond = respond  # pyright: ignore[reportAttributeAccessIssue]
    given = options(kind="function", path="my_environment:respond")
    with pytest.raises(InputError, match=r"environment\.path: .* is code; add --allow-code"):
        build_environment(given)
    environment = build_environment(given, allow_code=True)
    assert environment(said(columns={"end": True})) is None
    assert environment(said(columns={"end": False})) == [Message(role="user", content="so!")]
    with pytest.raises(EnvironmentFailure, match=r"missing: KeyError: 'end' .*'so' in answer to '\?'"):
        environment(said())
    for wrong, fault in (
        ([{"role": "assistant", "content": "I"}], "that is the policy"),
        ("text", "must return messages or None"),
        (7, "must return messages or None"),
    ):
        mine.respond = lambda _, wrong=wrong: wrong  # pyright: ignore[reportAttributeAccessIssue]
        with pytest.raises(EnvironmentFailure, match=fault):
            build_environment(given, allow_code=True)(said())


def test_tools_of_ones_own_describe_themselves(mine: ModuleType) -> None:
    def lookup(word: str) -> str:
        """Looks a word up.

        Args:
            word: The word.
        """
        return word.upper()

    mine.lookup, mine.bare = lookup, lambda x: x  # pyright: ignore[reportAttributeAccessIssue]
    given = options(kind="tools", tools=["calculator", "my_environment:lookup"])
    with pytest.raises(InputError, match=r"environment\.tools: .* is code"):
        build_environment(given)
    answers = build_environment(given, allow_code=True)(said(call("7*8"), call("so", "lookup", "word")))
    assert answers is not None and [answer.content for answer in answers] == ["56", "SO"]
    (prompt,) = announced([Prompt(messages=(USER,))], given, True)
    assert prompt.tools is not None and [tool["function"]["name"] for tool in prompt.tools] == ["calculator", "lookup"]
    with pytest.raises(InputError, match="has no type hint or docstring"):
        announced([], options(kind="tools", tools=["my_environment:bare"]), True)


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"kind": "tools"}, "kind: tools needs environment.tools"),
        ({"kind": "function"}, "kind: function needs environment.path"),
        ({"kind": "tools", "tools": ["calc"]}, "'calc' is not of the form package.module:function"),
        ({"kind": "function", "path": "calculator"}, "is not of the form package.module:function"),
        ({"kind": "function", "path": "a:b", "tools": ["calculator"]}, "tools has no meaning for kind: function"),
        ({"kind": "function", "path": "a:b", "announce": False}, "announce has no meaning for kind: function"),
        ({"kind": "tools", "tools": ["calculator"], "path": "a:b"}, "path has no meaning for kind: tools"),
        ({"kind": "tools", "tools": ["calculator"], "max_turns": 1}, "greater than or equal to 2"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_met(given: dict[str, Any], fault: str) -> None:
    with pytest.raises(InputError, match=fault):
        options(**given)
