"""What an environment is, and makes the one that a recipe names. It knows no tokens and no model.

An environment is a callable from a completion, as far as it got, to the messages that answer it, or None where the
episode is over. The completion ends in the policy's last turn (`response`); `prompt` and `turns` are before it, and
`columns` are those of the prompt. After a resume it is asked again about the same conversation, and should answer
alike.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from pydantic import ValidationError
from transformers.utils import get_json_schema

from alignkit.code import named_function
from alignkit.config import InputError
from alignkit.environment.calculator import calculator
from alignkit.environment.tools import Function, tools
from alignkit.options.environment import EnvironmentOptions
from alignkit.records import Completion, Message, Prompt, Tools
from reward_models.scores import RewardFailure, explained, shown

Environment: TypeAlias = Callable[[Completion], Sequence[Message] | None]
BUILT_IN: Mapping[str, Function] = {"calculator": calculator}
"""The tools that come along, by the names that recipes give them."""


class EnvironmentFailure(RewardFailure):
    """An environment gave no answer. Nothing has been trained on the episode."""


def build_environment(options: EnvironmentOptions, allow_code: bool = False) -> Environment:
    """The environment of `options`. Raises InputError where it cannot be made."""
    if options.kind == "tools":
        return tools(functions_of(options, allow_code), options.timeout)
    path = str(options.path)
    return guarded(named_function(path, allow_code, "environment.path"), path)


def functions_of(options: EnvironmentOptions, allow_code: bool) -> dict[str, Function]:
    """The tools that a recipe names, by the names that a policy calls them."""
    found: dict[str, Function] = {}
    for path in options.tools:
        function = BUILT_IN.get(path) or named_function(path, allow_code, "environment.tools")
        name = getattr(function, "__name__", "")
        if not name or name in found:
            why = f"is a second tool of the name {name!r}" if name else "is no function with a name"
            raise InputError(f"environment.tools: {path} {why}; wrap it in a function of a name of its own")
        found[name] = function
    return found


def announced(prompts: Sequence[Prompt], options: EnvironmentOptions | None, allow_code: bool) -> list[Prompt]:
    """The prompts with the JSON schemas of the tools, where a prompt brings none of its own. Raises InputError."""
    schemas = schemas_of(options, allow_code)
    return [one if one.tools or not schemas else one.model_copy(update={"tools": schemas}) for one in prompts]


def schemas_of(options: EnvironmentOptions | None, allow_code: bool) -> Tools | None:
    """The JSON schemas of the tools, as their signatures and docstrings describe them; None where they are not
    announced. Raises InputError for a function that does not describe itself."""
    if options is None or not options.announce or options.kind != "tools":
        return None
    schemas: list[dict[str, Any]] = []
    for name, function in functions_of(options, allow_code).items():
        try:
            schemas.append(get_json_schema(function))
        except Exception as error:  # transformers has an exception for each fault of a docstring
            raise InputError(
                f"environment.tools: {name} has no type hint or docstring (with a line under Args: for each "
                f"argument) that a schema can be made of: {error}; or announce: false"
            ) from error
    return tuple(schemas)


def guarded(function: Callable[[Completion], Any], name: str) -> Environment:
    """A user's function as an environment: what it answers is checked, and what it raises names the completion."""

    def respond(completion: Completion) -> Sequence[Message] | None:
        try:
            replies = function(completion)
        except Exception as error:
            why = explained(error).why
            raise EnvironmentFailure(f"environment {name}: its answer is {why}: {shown(completion)}") from error
        if replies is None:
            return None
        if isinstance(replies, str):
            raise EnvironmentFailure(f"environment {name}: it must return messages or None, and returned a text")
        try:
            messages = [one if isinstance(one, Message) else Message.model_validate(one) for one in replies]
        except (TypeError, ValidationError) as error:
            raise EnvironmentFailure(f"environment {name}: it must return messages or None: {error}") from error
        if any(message.role == "assistant" for message in messages):
            raise EnvironmentFailure(f"environment {name}: it answered with an assistant message; that is the policy")
        return messages

    return respond
