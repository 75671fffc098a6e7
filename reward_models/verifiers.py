"""Rewards that libraries verify: JSON against a schema, mathematics against an answer. They know no model.

Both libraries come with alignkit[eval]; they are imported where a reward is made.
"""

import json
import math
import re
from collections.abc import Mapping
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn, cast

from alignkit.config import InputError
from alignkit.marks import read_text
from reward_models.rules import compared
from reward_models.scores import Reward, guarded

_TEXT = re.compile(r"\$|\\boxed|\\\(|\\\[|\n|####|(?:^|\s)[A-Za-z]{2,}(?:[\s.,:]|$)")
"""What an answer has that says itself where its mathematics stands: marks, or words; `2\\sqrt{2}` says nothing."""
_FENCE = re.compile(r"\s*```(?:json|JSON)?[ \t]*\n(.*?)\n?[ \t]*```\s*", re.DOTALL)


def json_schema(schema: str | Path | Mapping[str, Any]) -> Reward:
    """1 where the response is JSON, alone or in a ```json fence, that `schema` allows (jsonschema); else 0.

    The schema is a mapping or a file of one, in the draft that its `$schema` names, or the newest. It is fetched
    nothing from a network: a `$ref` points into it. Raises InputError for what is no schema.
    """
    where = "reward.json_schema" if isinstance(schema, Mapping) else str(schema)
    loaded = dict(schema) if isinstance(schema, Mapping) else _read(schema)
    library, referencing = import_module("jsonschema"), import_module("referencing")
    kind = library.validators.validator_for(loaded, default=library.Draft202012Validator)
    try:
        kind.check_schema(loaded)
    except library.SchemaError as error:
        raise InputError(f"{where}: is no JSON Schema: {error.message} (at {error.json_path})") from error
    validator = kind(loaded, registry=referencing.Registry())

    def holds(text: str) -> bool:
        fenced = _FENCE.fullmatch(text)
        try:
            loaded = json.loads(fenced[1] if fenced else text, parse_constant=_refuse, parse_float=_finite)
            return bool(validator.is_valid(loaded))
        except (ValueError, ArithmeticError, RecursionError):  # jsonschema divides by multipleOf
            return False
        except referencing.exceptions.Unresolvable as error:
            raise InputError(f"{where}: its $ref {error.ref!r} points at nothing in it") from error

    return guarded(lambda completions: [holds(one.response.content) for one in completions], "json_schema")


def mathematics(column: str = "answer") -> Reward:
    """1 where math-verify finds the response's last expression equal to the answer in `column`; else 0.

    Numbers, fractions, sets, intervals, matrices and expressions. LaTeX stands in $…$, \\[…\\] or \\boxed{…} in the
    response; an answer is also read where it stands bare. Its time limits are alarms of the main thread. Raises
    InputError for an answer that cannot be read.
    """
    library = import_module("math_verify")

    @lru_cache(maxsize=4096)
    def read(answer: str) -> list[Any]:
        bare, text = f"${answer}$", _TEXT.search(answer) is not None
        found = library.parse(answer if text else bare) or library.parse(bare if text else answer)
        if not found:
            raise InputError(f"the column {column!r} holds no mathematics: {answer!r}")
        return found

    return compared(column, lambda response, answer: library.verify(read(answer), library.parse(response)), "math")


def _read(path: str | Path) -> dict[str, Any]:
    try:
        loaded: Any = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: is not JSON: {error}") from error
    if not isinstance(loaded, dict):
        raise InputError(f"{path}: a JSON Schema is a JSON object")
    return cast("dict[str, Any]", loaded)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        _refuse(text)
    return number
