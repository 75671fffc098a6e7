"""The forms that data is published in: which one a row has, and its records. Knows no files."""

from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from typing import Any

from alignkit.data.conversations import from_openai, from_pair, from_sharegpt, from_trl
from alignkit.data.questions import from_behavior, from_instruction, from_question, from_turns, from_ultrafeedback
from alignkit.data.rows import Row, common_of, need
from alignkit.data.trees import from_tree
from alignkit.data.turns import to_messages
from alignkit.records import (
    Candidates,
    Comparison,
    Demonstration,
    Document,
    Feedback,
    Prompt,
    Record,
    last_question,
)


def to_records(row: Any, as_: type[Record], form: str) -> list[Record]:
    """The records of type `as_` that one row of a form holds. Raises ValueError naming the field at fault."""
    if isinstance(row, str):
        row = {"text" if as_ is Document else "prompt": row}
    if not isinstance(row, Mapping):
        raise ValueError(f"a row must be an object, and is {type(row).__name__}")
    if any(value is None for value in row.values()):  # a table's rows hold the fields of all other rows as nulls
        row = {field: value for field, value in row.items() if value is not None or field not in SHAPING}
    return [convert(record, as_) for record in FORMATS[form](row, as_)]


def detect(row: Any) -> str | None:
    """The form of a row by the fields that are not null, or None."""
    if isinstance(row, str):
        return "trl"
    if not isinstance(row, Mapping):
        return None
    return _form_of(frozenset(field for field, value in row.items() if value is not None))


@lru_cache(maxsize=1000)
def _form_of(held: frozenset[str]) -> str | None:
    """By the fields that are held: most rows of a file hold the same."""
    return next((form for form, fields in FIELDS if any(held >= needed for needed in fields)), None)


def convert(record: Record, as_: type[Record]) -> Record:
    """A conversation that ends with an answer also holds its prompt; a ranking its best answer, and all of them as
    candidates.

    The answer to such a prompt is kept as the column "answer", what metrics and rules compare with.
    """
    if isinstance(record, as_):
        return record
    if as_ is Prompt and isinstance(record, Demonstration):
        messages = record.messages[: last_question(record.messages)]
        columns = {"answer": record.messages[-1].content, **record.columns}
        return Prompt(messages=messages, tools=record.tools, id=record.id, columns=columns)
    if as_ is Prompt and isinstance(record, Comparison | Feedback):
        return Prompt(messages=record.prompt, tools=record.tools, id=record.id, columns=record.columns)
    if as_ is Candidates and isinstance(record, Comparison):
        common: dict[str, Any] = {"tools": record.tools, "id": record.id, "columns": record.columns}
        return Candidates(prompt=record.prompt, responses=record.responses, ranks=record.ranks, **common)
    if as_ is Demonstration and isinstance(record, Comparison):
        best = record.responses[record.ranks.index(min(record.ranks))]
        context = tuple(turn.model_copy(update={"weight": 0.0}) for turn in record.prompt)
        return Demonstration(messages=context + best, tools=record.tools, id=record.id, columns=record.columns)
    if as_ is Candidates:
        raise ValueError(f"the row holds a {type(record).__name__}, and no responses that could be compared")
    article = "an" if as_.__name__[0] in "AEIOU" else "a"
    raise ValueError(f"the row holds a {type(record).__name__}, which cannot be read as {article} {as_.__name__}")


def _own(row: Row, as_: type[Record]) -> list[Record]:
    """alignkit's own JSON lines, as data_schemas/*.json describe them."""
    if as_ in (Prompt, Demonstration) and "messages" not in row and "responses" in row:
        as_ = Comparison
    if as_ is Document or as_ not in (Demonstration, Comparison, Candidates, Prompt, Feedback):
        return [as_.model_validate(dict(row))]
    conversations = [name for name in ("messages", "prompt", "response") if name in as_.model_fields]
    values: dict[str, Any] = {name: to_messages(need(row, name), name, "user") for name in conversations}
    if as_ in (Comparison, Candidates):
        responses = need(row, "responses")
        if not isinstance(responses, list) or not responses:
            raise ValueError("no response: field `responses` must be a list of two or more responses")
        values["responses"] = tuple(to_messages(r, f"responses[{i}]", "assistant") for i, r in enumerate(responses))
    if as_ is Comparison or (as_ is Candidates and row.get("ranks") is not None):
        values["ranks"] = need(row, "ranks")
    if as_ is Feedback:
        values["response"] = to_messages(row["response"], "response", "assistant")
    plain = [name for name in ("margins", "label", "correction") if name in as_.model_fields and name in row]
    values.update({name: row[name] for name in plain})
    dropped = ("ranks", "margins") if as_ is Candidates else ()
    return [as_.model_validate({**values, **common_of(row, *values, *dropped)})]


FORMATS: dict[str, Callable[[Row, type[Record]], list[Record]]] = {
    "alignkit": _own,
    "trl": from_trl,
    "hh": lambda row, _: [from_pair(row)],
    "oasst": from_tree,
    "dolly": from_instruction,
    "alpaca": from_instruction,
    "sharegpt": from_sharegpt,
    "ultrafeedback": from_ultrafeedback,
    "gsm8k": from_question,
    "svamp": from_question,
    "mt_bench": from_turns,
    "openai": from_openai,
    "harmbench": from_behavior,
}
"""Every form that `data.format` can name."""

FIELDS: tuple[tuple[str, tuple[set[str], ...]], ...] = (
    ("oasst", ({"message_tree_id", "prompt"},)),
    ("alignkit", ({"prompt", "responses"}, {"prompt", "response", "label"})),
    ("ultrafeedback", ({"instruction", "completions"},)),
    ("sharegpt", ({"conversations"},)),
    ("trl", ({"chosen", "rejected"}, {"prompt", "completion"}, {"messages"})),
    ("dolly", ({"instruction", "response"},)),
    ("alpaca", ({"instruction", "output"}, {"instruction", "instances"})),
    ("svamp", ({"Body", "Question", "Answer"},)),
    ("gsm8k", ({"question", "answer"},)),
    ("mt_bench", ({"turns"},)),
    ("openai", ({"input", "preferred_output", "non_preferred_output"},)),
    ("harmbench", ({"Behavior"},)),
    ("trl", ({"prompt"}, {"text"})),
)
"""The fields by which a form is recognised, tried from the top."""
SHAPING = frozenset[str]().union(*(fields for _, sets in FIELDS for fields in sets))
"""All of these fields."""


class UnknownForm(ValueError):
    """The row has none of the forms in FIELDS."""

    def __init__(self, row: Any) -> None:
        fields = ", ".join(row) if isinstance(row, Mapping) else type(row).__name__
        super().__init__(f"the row's form ({fields if len(fields) <= 200 else f'{fields[:197]}...'}) is not known")


@cache
def known_forms(option: str) -> str:
    """What to do about a row of an unknown form. One text for all: a large file has as many of them as rows."""
    known = "; ".join(f"{name}: {' + '.join(sorted(needed))}" for name, sets in FIELDS for needed in sets)
    return f"Rename its fields to those of a known form, or name the form in {option}. {known}"
