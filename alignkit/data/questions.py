"""Rows with a question and its answers in fields of their own (Alpaca, GSM8K, ...), into records. Knows no files."""

from alignkit.data.conversations import from_pair
from alignkit.data.rows import Row, common_of, need, number_of, text_of
from alignkit.data.turns import from_json, says
from alignkit.records import Candidates, Comparison, Demonstration, Message, Messages, Prompt, Record


def from_instruction(row: Row, _: type[Record]) -> list[Record]:
    """Alpaca, dolly and Self-Instruct: an instruction, what it is about, and an answer (or several instances)."""
    instruction = text_of(row, "instruction", "empty prompt")
    if "instances" in row:
        instances = need(row, "instances")
        if not isinstance(instances, list) or not instances or not all(isinstance(part, dict) for part in instances):
            raise ValueError("no response: field `instances` must be a list of objects with `input` and `output`")
        common = common_of(row, "instruction", "instances")
        name = common.pop("id")
        parts = [{**instance, "instruction": instruction} for instance in instances]
        ids = [name if name is None or len(parts) == 1 else f"{name}/{index}" for index in range(len(parts))]
        return [
            Demonstration(messages=_instructed(part, "input", "output"), id=part_id, **common)
            for part, part_id in zip(parts, ids, strict=True)
        ]
    about, answer = ("context", "response") if "response" in row else ("input", "output")
    messages = _instructed(row, about, answer)
    return [Demonstration(messages=messages, **common_of(row, "instruction", "system", about, answer))]


def _instructed(row: Row, about: str, answer: str) -> Messages:
    asked = "\n\n".join([row["instruction"], *([text_of(row, about)] if row.get(about) else [])])
    answered = says("assistant", text_of(row, answer, "no response"))
    system = (says("system", text_of(row, "system")),) if row.get("system") else ()
    return (*system, says("user", asked), answered)


def from_ultrafeedback(row: Row, as_: type[Record]) -> list[Record]:
    """UltraFeedback: its scored completions as one ranking, or its binarized pairs."""
    if "completions" not in row:
        return [from_pair(row)]
    completions = row["completions"]
    if not isinstance(completions, list) or not completions:
        raise ValueError("no response: field `completions` must be a list of two or more objects")
    texts = [text_of(completion, "response") for completion in completions]
    prompt = (says("user", text_of(row, "instruction", "empty prompt")),)
    responses = tuple((says("assistant", text),) for text in texts)
    common = common_of(row, "instruction", "completions")
    if as_ is Candidates and any(completion.get("overall_score") is None for completion in completions):
        return [Candidates(prompt=prompt, responses=responses, **common)]
    scores = [number_of(need(completion, "overall_score"), "overall_score") for completion in completions]
    order = sorted(set(scores), reverse=True)
    ranks = tuple(order.index(score) + 1 for score in scores)
    if as_ is Candidates:
        return [Candidates(prompt=prompt, responses=responses, ranks=ranks, **common)]
    return [Comparison(prompt=prompt, responses=responses, ranks=ranks, margins=tuple(scores), **common)]


def from_question(row: Row, _: type[Record]) -> list[Record]:
    """Questions with a reference answer (GSM8K, SVAMP); the column `answer` holds the result alone."""
    if "Body" in row:
        body = text_of(row, "Body").strip()
        asked = f"{body if body.endswith(('.', '!', '?')) else f'{body}.'} {text_of(row, 'Question', 'empty prompt')}"
        result = number_of(need(row, "Answer"), "Answer")
        columns = {key: value for key, value in row.items() if key not in ("Body", "Question", "Answer", "ID")}
        columns["answer"] = f"{result:g}"
        name = None if row.get("ID") is None else str(row["ID"])
        return [Prompt(messages=(says("user", asked),), id=name, columns=columns)]
    answer = text_of(row, "answer", "no response")
    messages: tuple[Message, ...] = (says("user", text_of(row, "question", "empty prompt")), says("assistant", answer))
    common = common_of(row, "question", "answer")
    common["columns"]["answer"] = answer.rpartition("####")[2].strip().replace(",", "") if "####" in answer else answer
    return [Demonstration(messages=messages, **common)]


def from_turns(row: Row, _: type[Record]) -> list[Record]:
    """MT-Bench: the first question of several; all of them stay in the column `turns`."""
    turns = need(row, "turns")
    if isinstance(turns, str):
        turns = from_json(turns, "turns")
    if not isinstance(turns, list) or not turns or not isinstance(turns[0], str):
        raise ValueError("empty prompt: field `turns` must be a list of questions")
    common = common_of({**row, "id": row.get("question_id", row.get("id"))}, "question_id")
    return [Prompt(messages=(says("user", turns[0]),), **common)]


def from_behavior(row: Row, _: type[Record]) -> list[Record]:
    """HarmBench: a behaviour that is asked for, after the text it is about where it has one."""
    parts = [*([text_of(row, "ContextString")] if row.get("ContextString") else []), text_of(row, "Behavior")]
    common = common_of({**row, "id": row.get("BehaviorID")}, "Behavior", "ContextString", "BehaviorID")
    return [Prompt(messages=(says("user", "\n\n".join(parts)),), **common)]
