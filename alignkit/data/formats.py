"""Rows of the forms that data is published in, into records, one function a form. Knows no files."""

from collections.abc import Callable, Mapping
from typing import Any

from alignkit.data.trees import from_tree
from alignkit.data.turns import (
    from_json,
    is_transcript,
    says,
    shared_beginning,
    shared_text,
    to_message,
    to_messages,
    to_tools,
)
from alignkit.records import (
    Comparison,
    Demonstration,
    Document,
    Feedback,
    Message,
    Messages,
    Prompt,
    Record,
    last_question,
)

Row = Mapping[str, Any]


def to_records(row: Any, as_: type[Record], form: str) -> list[Record]:
    """The records of type `as_` that one row of a form holds. Raises ValueError naming the field at fault."""
    if isinstance(row, str):
        row = {"text" if as_ is Document else "prompt": row}
    if not isinstance(row, Mapping):
        raise ValueError(f"a row must be an object, and is {type(row).__name__}")
    return [convert(record, as_) for record in FORMATS[form](row, as_)]


def detect(row: Any) -> str | None:
    """The form of a row by its fields, or None."""
    if isinstance(row, str):
        return "trl"
    if not isinstance(row, Mapping):
        return None
    return next((form for form, fields in FIELDS if any(row.keys() >= needed for needed in fields)), None)


def convert(record: Record, as_: type[Record]) -> Record:
    """A conversation that ends with an answer also holds its prompt, and a ranking its best answer."""
    if isinstance(record, as_):
        return record
    if as_ is Prompt and isinstance(record, Demonstration):
        messages = record.messages[: last_question(record.messages)]
        return Prompt(messages=messages, tools=record.tools, id=record.id, columns=record.columns)
    if as_ is Prompt and isinstance(record, Comparison | Feedback):
        return Prompt(messages=record.prompt, tools=record.tools, id=record.id, columns=record.columns)
    if as_ is Demonstration and isinstance(record, Comparison):
        best = record.responses[record.ranks.index(min(record.ranks))]
        context = tuple(turn.model_copy(update={"weight": 0.0}) for turn in record.prompt)
        return Demonstration(messages=context + best, tools=record.tools, id=record.id, columns=record.columns)
    article = "an" if as_.__name__[0] in "AEIOU" else "a"
    raise ValueError(f"the row holds a {type(record).__name__}, which cannot be read as {article} {as_.__name__}")


# ------------------------------------------------------------------------------------------------- fields of a row


def _need(row: Row, field: str) -> Any:
    if row.get(field) is None:
        raise ValueError(f"field `{field}` is missing; the row has {', '.join(row) or 'no field'}")
    return row[field]


def _text(row: Row, field: str, if_empty: str | None = None) -> str:
    value = _need(row, field)
    if not isinstance(value, str):
        raise ValueError(f"field `{field}` must be text, and is {type(value).__name__}")
    if if_empty and not value.strip():
        raise ValueError(f"{if_empty}: field `{field}` is empty")
    return value


def _common(row: Row, *used: str) -> dict[str, Any]:
    """id, tools and columns of a row; the columns are all its fields but those `used`."""
    columns = row.get("columns")
    others = {key: value for key, value in row.items() if key not in (*used, "id", "tools", "columns")}
    return {
        "id": None if row.get("id") is None else str(row["id"]),
        "tools": to_tools(row.get("tools")),
        "columns": {**(columns if isinstance(columns, Mapping) else {}), **others},
    }


def _number(value: Any, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"field `{field}` must be a number, and is {value!r}")
    return float(value)


def _label(row: Row) -> bool:
    label = _need(row, "label")
    if label not in (True, False):
        raise ValueError(f"field `label` must be true (good) or false (bad), and is {label!r}")
    return bool(label)


# ------------------------------------------------------------------------------------------------------- the forms


def _own(row: Row, as_: type[Record]) -> list[Record]:
    """alignkit's own JSON lines, as data_schemas/*.json describe them."""
    if as_ is Document or as_ not in (Demonstration, Comparison, Prompt, Feedback):
        return [as_.model_validate(dict(row))]
    conversations = [name for name in ("messages", "prompt", "response") if name in as_.model_fields]
    values: dict[str, Any] = {name: to_messages(_need(row, name), name, "user") for name in conversations}
    if as_ is Comparison:
        responses = _need(row, "responses")
        if not isinstance(responses, list) or not responses:
            raise ValueError("no response: field `responses` must be a list of two or more responses")
        values["responses"] = tuple(to_messages(r, f"responses[{i}]", "assistant") for i, r in enumerate(responses))
        values["ranks"] = _need(row, "ranks")
    if as_ is Feedback:
        values["response"] = to_messages(row["response"], "response", "assistant")
    plain = [name for name in ("margins", "label", "correction") if name in as_.model_fields and name in row]
    values.update({name: row[name] for name in plain})
    return [as_.model_validate({**values, **_common(row, *values)})]


def _trl(row: Row, as_: type[Record]) -> list[Record]:
    """TRL's forms, text and messages alike: language modelling, prompts, completions, preferences, labels."""
    if "chosen" in row or "rejected" in row or (as_ is Comparison and "prompt" in row):
        return [_pair(row)]
    if "completion" in row or (as_ is Demonstration and "prompt" in row):
        return [_completion(row)]
    if "messages" in row:
        messages = to_messages(row["messages"], "messages", "user")
        if "label" in row and as_ is not Demonstration:
            cut = last_question(messages)
            common = _common(row, "messages", "label")
            return [Feedback(prompt=messages[:cut], response=messages[cut:], label=_label(row), **common)]
        if "label" in row:
            raise ValueError("a labelled answer (field `label`) may be a bad one: it is Feedback, not a Demonstration")
        record = Prompt if as_ is Prompt and last_question(messages) == len(messages) else Demonstration
        return [record(messages=messages, **_common(row, "messages"))]
    if "prompt" in row:
        return [Prompt(messages=_asked(row["prompt"]), **_common(row, "prompt"))]
    return [Document(text=_text(row, "text", "empty text"), **_named(row))]


def _named(row: Row) -> dict[str, str]:
    return {name: str(row[name]) for name in ("id", "source") if row.get(name) is not None}


def _completion(row: Row) -> Record:
    prompt, completion = _need(row, "prompt"), _need(row, "completion")
    common = _common(row, "prompt", "completion")
    asked = _asked(prompt)
    answer = to_messages(completion, "completion", "assistant")
    if "label" in row:
        common["columns"].pop("label")
        return Feedback(prompt=asked, response=answer, label=_label(row), **common)
    context = tuple(turn.model_copy(update={"weight": 0.0}) if turn.role == "assistant" else turn for turn in asked)
    if not answer or all(turn.empty for turn in answer):
        raise ValueError("no response: field `completion` is empty")
    return Demonstration(messages=context + answer, **common)


def _asked(prompt: Any) -> Messages:
    """The prompt's turns; an HH transcript that closes with an open `Assistant:` ends before it."""
    messages = to_messages(prompt, "prompt", "user")
    return messages[:-1] if messages and messages[-1].role == "assistant" and messages[-1].empty else messages


def _pair(row: Row) -> Comparison:
    """A chosen and a rejected answer, with the prompt in a field of its own or as what both begin with."""
    chosen, rejected = _need(row, "chosen"), _need(row, "rejected")
    beside = "conversations" if "conversations" in row else "prompt"
    if row.get(beside) is not None:
        prompt = _asked(row[beside])
        if isinstance(row[beside], str) and is_transcript(row[beside]):
            chosen, rejected = (text.strip() if isinstance(text, str) else text for text in (chosen, rejected))
        responses = [_answer(chosen, "chosen", prompt), _answer(rejected, "rejected", prompt)]
    elif isinstance(chosen, str) and isinstance(rejected, str) and not is_transcript(chosen):
        cut = shared_text((chosen, rejected))
        prompt = (says("user", chosen[:cut]),) if cut else ()
        responses = [(says("assistant", chosen[cut:]),), (says("assistant", rejected[cut:]),)]
    else:
        both = [to_messages(chosen, "chosen", "assistant"), to_messages(rejected, "rejected", "assistant")]
        cut = shared_beginning(both)
        prompt = both[0][:cut]
        responses = [turns[cut:] for turns in both]
    if not prompt:
        raise ValueError("empty prompt: fields `chosen` and `rejected` share no beginning, and there is no `prompt`")
    margins = _margins(row)
    common = _common(row, beside, "chosen", "rejected", "margin", *_SCORES)
    return Comparison(prompt=prompt, responses=tuple(responses), ranks=(1, 2), margins=margins, **common)


def _answer(value: Any, field: str, prompt: Messages) -> Messages:
    """The turns of an answer, without the prompt where the field repeats it."""
    turns = to_messages(value, field, "assistant")
    return turns[len(prompt) :] if turns[: len(prompt)] == prompt else turns


_SCORES = ("score_chosen", "score_rejected", "chosen_score", "rejected_score")


def _margins(row: Row) -> tuple[float, float] | None:
    metadata = row.get("metadata")
    scored = {**metadata, **row} if isinstance(metadata, Mapping) else row
    for chosen, rejected in (_SCORES[:2], _SCORES[2:]):
        if scored.get(chosen) is not None and scored.get(rejected) is not None:
            return _number(scored[chosen], chosen), _number(scored[rejected], rejected)
    return None if row.get("margin") is None else (_number(row["margin"], "margin"), 0.0)


def _instruction(row: Row, _: type[Record]) -> list[Record]:
    """Alpaca, dolly and Self-Instruct: an instruction, what it is about, and an answer (or several instances)."""
    instruction = _text(row, "instruction", "empty prompt")
    if "instances" in row:
        instances = _need(row, "instances")
        if not isinstance(instances, list) or not instances:
            raise ValueError("no response: field `instances` must be a list of objects with `input` and `output`")
        common = _common(row, "instruction", "instances")
        name = common.pop("id")
        parts = [{**instance, "instruction": instruction} for instance in instances]
        ids = [name if name is None or len(parts) == 1 else f"{name}/{index}" for index in range(len(parts))]
        return [
            Demonstration(messages=_instructed(part, "input", "output"), id=part_id, **common)
            for part, part_id in zip(parts, ids, strict=True)
        ]
    about, answer = ("context", "response") if "response" in row else ("input", "output")
    messages = _instructed(row, about, answer)
    return [Demonstration(messages=messages, **_common(row, "instruction", "system", about, answer))]


def _instructed(row: Row, about: str, answer: str) -> Messages:
    asked = "\n\n".join(text for text in (row["instruction"], row.get(about)) if text)
    answered = says("assistant", _text(row, answer, "no response"))
    system = (says("system", _text(row, "system")),) if row.get("system") else ()
    return (*system, says("user", asked), answered)


def _sharegpt(row: Row, as_: type[Record]) -> list[Record]:
    """ShareGPT: turns with from and value; with chosen and rejected, a comparison."""
    if "chosen" in row or "rejected" in row:
        return [_pair(row)]
    system = (says("system", _text(row, "system")),) if row.get("system") else ()
    turns = _need(row, "conversations")
    if not isinstance(turns, list):
        raise ValueError("field `conversations` must be a list of turns")
    messages = (*system, *(to_message(turn, f"conversations[{i}]") for i, turn in enumerate(turns)))
    record = Prompt if as_ is Prompt and last_question(messages) == len(messages) else Demonstration
    return [record(messages=messages, **_common(row, "conversations", "system"))]


def _ultrafeedback(row: Row, _: type[Record]) -> list[Record]:
    """UltraFeedback: its scored completions as one ranking, or its binarized pairs."""
    if "completions" not in row:
        return [_pair(row)]
    completions = row["completions"]
    if not isinstance(completions, list) or not completions:
        raise ValueError("no response: field `completions` must be a list of two or more objects")
    texts = [_text(completion, "response") for completion in completions]
    scores = [_number(_need(completion, "overall_score"), "overall_score") for completion in completions]
    order = sorted(set(scores), reverse=True)
    ranks = tuple(order.index(score) + 1 for score in scores)
    prompt = (says("user", _text(row, "instruction", "empty prompt")),)
    responses = tuple((says("assistant", text),) for text in texts)
    common = _common(row, "instruction", "completions")
    return [Comparison(prompt=prompt, responses=responses, ranks=ranks, margins=tuple(scores), **common)]


def _question(row: Row, _: type[Record]) -> list[Record]:
    """Questions with a reference answer (GSM8K, SVAMP); the column `answer` holds the result alone."""
    if "Body" in row:
        body = _text(row, "Body").strip()
        asked = f"{body if body.endswith(('.', '!', '?')) else f'{body}.'} {_text(row, 'Question', 'empty prompt')}"
        result = _number(_need(row, "Answer"), "Answer")
        columns = {key: value for key, value in row.items() if key not in ("Body", "Question", "Answer", "ID")}
        columns["answer"] = f"{result:g}"
        name = None if row.get("ID") is None else str(row["ID"])
        return [Prompt(messages=(says("user", asked),), id=name, columns=columns)]
    answer = _text(row, "answer", "no response")
    messages: tuple[Message, ...] = (says("user", _text(row, "question", "empty prompt")), says("assistant", answer))
    common = _common(row, "question", "answer")
    common["columns"]["answer"] = answer.rpartition("####")[2].strip().replace(",", "") if "####" in answer else answer
    return [Demonstration(messages=messages, **common)]


def _turns(row: Row, _: type[Record]) -> list[Record]:
    """MT-Bench: the first question of several; all of them stay in the column `turns`."""
    turns = _need(row, "turns")
    if isinstance(turns, str):
        turns = from_json(turns, "turns")
    if not isinstance(turns, list) or not turns or not isinstance(turns[0], str):
        raise ValueError("empty prompt: field `turns` must be a list of questions")
    common = _common({**row, "id": row.get("question_id", row.get("id"))}, "question_id")
    return [Prompt(messages=(says("user", turns[0]),), **common)]


FORMATS: dict[str, Callable[[Row, type[Record]], list[Record]]] = {
    "alignkit": _own,
    "trl": _trl,
    "hh": lambda row, _: [_pair(row)],
    "oasst": from_tree,
    "dolly": _instruction,
    "alpaca": _instruction,
    "sharegpt": _sharegpt,
    "ultrafeedback": _ultrafeedback,
    "gsm8k": _question,
    "svamp": _question,
    "mt_bench": _turns,
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
    ("trl", ({"prompt"}, {"text"})),
)
"""The fields by which a form is recognised, tried from the top."""
