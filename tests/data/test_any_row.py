"""Whatever stands in a field of a row, reading it ends in records or in a ValueError, never in another exception."""

import random
from typing import Any

import pytest

from alignkit.data.formats import FORMATS, to_records
from alignkit.records import Comparison, Demonstration, Document, Feedback, Prompt

TURN = {"role": "user", "content": "q"}
VALUES: list[Any] = [
    None, True, 3, -1.5, 7.0, "", "text", "\n\nHuman: q\n\nAssistant: a", "[", [], [None], [[]], ["a", "b"], [1, 2],
    {}, {"a": 1}, TURN, [TURN], [TURN, {"role": "assistant", "content": "a"}], [{"from": "gpt", "value": None}],
    {"role": ["x"], "content": {}}, [{"role": "assistant", "tool_calls": 5}], [{"input": 1}],
    [{**TURN, "tool_calls": [{"function": "f"}]}], [{"response": "a", "overall_score": "9"}],
    {"text": "q", "role": "prompter", "replies": 3},
    {"text": "q", "role": "prompter", "replies": [{"text": "a", "role": "assistant", "rank": "x"}, 3]},
    {"text": "q", "role": "prompter", "replies": [{"text": "a", "role": "assistant", "rank": r} for r in (0, 1)]},
]  # fmt: skip
GOOD: dict[str, dict[str, Any]] = {
    "alignkit": {"prompt": "q", "responses": ["a", "b"], "ranks": [1, 2], "margins": [2, 1]},
    "trl": {"prompt": "q", "chosen": "a", "rejected": "b", "margin": 1, "completion": "a", "messages": [TURN]},
    "hh": {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
    "oasst": {"message_tree_id": "x", "prompt": VALUES[-1]},
    "dolly": {"instruction": "q", "context": "", "response": "a"},
    "alpaca": {"instruction": "q", "input": "", "output": "a", "instances": [{"input": "", "output": "a"}]},
    "sharegpt": {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    "ultrafeedback": {"instruction": "q", "completions": [{"response": "a", "overall_score": i} for i in (1, 2)]},
    "gsm8k": {"question": "q", "answer": "a"},
    "svamp": {"Body": "b", "Question": "q", "Answer": 1},
    "mt_bench": {"turns": ["q"], "question_id": 1},
    "openai": {"input": {"messages": [TURN]}, "preferred_output": "a", "non_preferred_output": "b"},
    "harmbench": {"Behavior": "q", "BehaviorID": "b"},
}
MORE = ("label", "metadata", "columns", "tools", "system", "id", "score_chosen", "score_rejected", "response", "text")


@pytest.mark.parametrize("form", FORMATS)
def test_no_value_of_any_field_breaks_a_reader(form: str) -> None:
    draw = random.Random(form)
    read = refused = 0
    for _ in range(1000):
        row = {field: value for field, value in GOOD[form].items() if draw.random() < 0.9}
        row.update({draw.choice([*GOOD[form], *MORE]): draw.choice(VALUES) for _ in range(draw.randint(0, 3))})
        for as_ in (Document, Demonstration, Comparison, Prompt, Feedback):
            try:
                read += len(to_records(row, as_, form))
            except ValueError:
                refused += 1
    assert read > 100
    assert refused > 100
