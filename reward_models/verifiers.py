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
from reward_models.rules import compared, with_hyphens
from reward_models.scores import Reward, guarded

_NAMES = (
    "pi", "alpha", "beta", "gamma", "delta", "theta", "lambda", "sigma", "phi", "omega", "sin", "cos", "tan", "arcsin",
    "arccos", "arctan", "sinh", "cosh", "tanh", "log", "ln", "exp", "infty",
)  # fmt: skip
"""What LaTeX has a command for."""
_KNOWN = {*_NAMES, "sqrt", "infinity", "inf", "and", "or", "percent"}
_WORD = re.compile(r"[^\W\d_]{2,}")
_NAME = re.compile(rf"(?<![^\W\d_])(?:{'|'.join(_NAMES)})(?![^\W\d_])")
_TEXT = re.compile(rf"\$|\\boxed|\\\(|\\\[|\n|####|(?:^|\s)(?!{_NAME.pattern})[A-Za-z]{{2,}}(?:[\s.,:]|$)")
"""What an answer has that says itself where its mathematics stands: marks, or words; `2\\sqrt{2}` says nothing."""
_PROSE = re.compile(r"(?:[^\W\d_]|[\s,.;:!?'’\"()#]|(?<=[^\W\d_]{3})-(?=[^\W\d_]{3}))+")
"""What may be words and nothing else: no digit, no sign of mathematics, no hyphen but one between words."""
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


def mathematics(column: str = "answer", timeout: float = 5.0) -> Reward:
    """1 where math-verify finds the response's last expression equal to the answer in `column`; else 0.

    Numbers, fractions, sets, intervals, matrices and expressions. LaTeX stands in $…$, \\[…\\] or \\boxed{…} in the
    response; an answer is also read where it stands bare, with names such as pi and sin(x). Reading a response, and
    each comparison, may take `timeout` seconds, rounded up to whole ones; one that takes longer scores 0. The limits
    are alarms of the main thread. Raises InputError for an answer that cannot be read, or that is bare words, which
    would be products of letters.
    """
    library, seconds = import_module("math_verify"), math.ceil(timeout)

    @lru_cache(maxsize=4096)
    def read(answer: str) -> list[Any]:
        found: list[Any] = library.parse(answer) if _TEXT.search(answer) else []
        if not found:
            if _PROSE.fullmatch(answer) and not _KNOWN.issuperset(_WORD.findall(answer)):
                raise InputError(
                    f"the column {column!r} holds words and no mathematics: {answer!r}; take rule: exact_match or "
                    f"contains, or write \\text{{{answer}}} for words, ${answer}$ for a product of letters"
                )
            latex = answer if "\\" in answer else _NAME.sub(r"\\\g<0>", answer)
            found = library.parse(f"${latex}$") or library.parse(answer)
        if not found:
            raise InputError(f"the column {column!r} holds no mathematics: {answer!r}")
        return [*found, answer]  # also as it stands: `pi` is a product of letters in a response's $pi$ too

    def equal(response: str, answer: str) -> bool:
        said = library.parse(with_hyphens(response), parsing_timeout=seconds)
        return library.verify(read(answer), said, timeout_seconds=seconds)

    return compared(column, equal, "math")


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
