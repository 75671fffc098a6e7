"""Rows that hold conversations, as TRL, ShareGPT and HH-RLHF write them, into records. Knows no files."""

from collections.abc import Mapping
from typing import Any

from alignkit.data.rows import Row, common_of, label_of, need, number_of, text_of
from alignkit.data.turns import is_transcript, says, shared_beginning, shared_text, to_message, to_messages, turns_in
from alignkit.records import (
    Comparison,
    Demonstration,
    Document,
    Feedback,
    Messages,
    Prompt,
    Record,
    last_question,
)


def from_trl(row: Row, as_: type[Record]) -> list[Record]:
    """TRL's forms, text and messages alike: language modelling, prompts, completions, preferences, labels."""
    if "chosen" in row or "rejected" in row or (as_ is Comparison and "prompt" in row):
        return [from_pair(row)]
    if "completion" in row or (as_ is Demonstration and "prompt" in row):
        return [_completion(row)]
    if "messages" in row:
        messages = to_messages(turns_in(row["messages"], "messages"), "messages", "user")
        if "label" in row and as_ is not Demonstration:
            cut = last_question(messages)
            common = common_of(row, "messages", "label")
            return [Feedback(prompt=messages[:cut], response=messages[cut:], label=label_of(row), **common)]
        if "label" in row:
            raise ValueError("a labelled answer (field `label`) may be a bad one: it is Feedback, not a Demonstration")
        record = Prompt if as_ is Prompt and last_question(messages) == len(messages) else Demonstration
        return [record(messages=messages, **common_of(row, "messages"))]
    if "prompt" in row:
        return [Prompt(messages=_asked(row["prompt"]), **common_of(row, "prompt"))]
    return [Document(text=text_of(row, "text", "empty text"), **_named(row))]


def _named(row: Row) -> dict[str, str]:
    return {name: str(row[name]) for name in ("id", "source") if row.get(name) is not None}


def _completion(row: Row) -> Record:
    prompt, completion = need(row, "prompt"), need(row, "completion")
    common = common_of(row, "prompt", "completion")
    asked = _asked(prompt)
    answer = to_messages(completion, "completion", "assistant")
    if "label" in row:
        common["columns"].pop("label")
        return Feedback(prompt=asked, response=answer, label=label_of(row), **common)
    context = tuple(turn.model_copy(update={"weight": 0.0}) if turn.role == "assistant" else turn for turn in asked)
    if not answer or all(turn.empty for turn in answer):
        raise ValueError("no response: field `completion` is empty")
    return Demonstration(messages=context + answer, **common)


def _asked(prompt: Any) -> Messages:
    """The prompt's turns; an HH transcript that closes with an open `Assistant:` ends before it."""
    messages = to_messages(prompt, "prompt", "user")
    return messages[:-1] if messages and messages[-1].role == "assistant" and messages[-1].empty else messages


def from_pair(row: Row) -> Comparison:
    """A chosen and a rejected answer, with the prompt in a field of its own or as what both begin with."""
    chosen, rejected = need(row, "chosen"), need(row, "rejected")
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
    common = common_of(row, beside, "chosen", "rejected", "margin", *_SCORES)
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
            return number_of(scored[chosen], chosen), number_of(scored[rejected], rejected)
    return None if row.get("margin") is None else (number_of(row["margin"], "margin"), 0.0)


def from_openai(row: Row, _: type[Record]) -> list[Record]:
    """OpenAI's preference data: what was asked in `input`, and two outputs."""
    asked = need(row, "input")
    pair = {
        "prompt": need(asked, "messages"),
        "tools": asked.get("tools"),
        "chosen": need(row, "preferred_output"),
        "rejected": need(row, "non_preferred_output"),
    }
    others = {
        key: value for key, value in row.items() if key not in ("input", "preferred_output", "non_preferred_output")
    }
    return [from_pair({**others, **pair})]


def from_sharegpt(row: Row, as_: type[Record]) -> list[Record]:
    """ShareGPT: turns with from and value; with chosen and rejected, a comparison."""
    if "chosen" in row or "rejected" in row:
        return [from_pair(row)]
    system = (says("system", text_of(row, "system")),) if row.get("system") else ()
    turns = turns_in(need(row, "conversations"), "conversations")
    if not isinstance(turns, list):
        raise ValueError("field `conversations` must be a list of turns")
    messages = (*system, *(to_message(turn, f"conversations[{i}]") for i, turn in enumerate(turns)))
    record = Prompt if as_ is Prompt and last_question(messages) == len(messages) else Demonstration
    return [record(messages=messages, **common_of(row, "conversations", "system"))]
