"""An environment that executes a policy's tool calls: registered Python functions, by name. Knows no model."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from alignkit.records import Completion, Message, ToolCall
from reward_models.waiting import within

Function: TypeAlias = Callable[..., Any]
FAILED = "Error: "
"""What a tool message begins with whose call failed."""
COUNTED = ("turns", "tool_calls", "failed_calls")
"""What is counted of an episode."""


def tools(functions: Mapping[str, Function], timeout: float | None = None) -> Callable[[Completion], Any]:
    """Answers each call of a turn with a tool message, in the calls' order; a turn without calls ends the episode.

    A call fails on an unknown name, on wrong arguments, on anything that the function raises, and after `timeout`
    seconds; the policy reads why, and goes on. A result that is no text is written as JSON.
    """

    def respond(completion: Completion) -> Sequence[Message] | None:
        calls = completion.response.tool_calls
        return None if calls is None else [_answered(call, functions, timeout) for call in calls]

    return respond


def _answered(call: ToolCall, functions: Mapping[str, Function], timeout: float | None) -> Message:
    function = functions.get(call.name)
    if function is None:
        text = f"{FAILED}there is no tool {call.name!r}, only {', '.join(functions)}"
    else:
        try:
            result = within(timeout, lambda: function(**call.arguments))
            text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, default=str)
        except (Exception, SystemExit) as error:  # argparse ends the process where a call is wrong
            text = f"{FAILED}{error}"
    text = text.encode(errors="replace").decode()  # half of a surrogate pair is no text
    return Message(role="tool", content=text, name=call.name, tool_call_id=call.id)


def counted(completion: Completion) -> dict[str, int]:
    """COUNTED by name: how many turns of the policy, answered tool calls, and failed ones an episode has."""
    answers = [turn for turn in completion.turns if turn.role == "assistant"]
    failed = [turn for turn in completion.turns if turn.role == "tool" and turn.content.startswith(FAILED)]
    calls = sum(len(answer.tool_calls or ()) for answer in answers)
    return {"turns": len(answers) + 1, "tool_calls": calls, "failed_calls": len(failed)}
