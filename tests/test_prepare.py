"""From records to examples: what is cut, skipped and counted, and options that could not hold."""

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny

from alignkit.config import InputError, build
from alignkit.options.shared import DataOptions, ModelOptions, RuntimeOptions, TrainOptions, check_patience
from alignkit.prepare import fit_examples, load_examples, open_setting, ranked_sequences
from alignkit.records import Comparison, Demonstration
from alignkit.trie import TokenSequence

# Three answers of one conversation with their ends (2), each after all that was said before it (1: BOS).
CHAIN = [
    TokenSequence([1, 10, 20, 2], [0, 0, 1, 1]),
    TokenSequence([1, 10, 20, 2, 11, 21, 2], [0] * 5 + [1] * 2),
    TokenSequence([1, 10, 20, 2, 11, 21, 2, 12, 22, 23, 2], [0] * 8 + [1] * 3),
]


@pytest.mark.parametrize(
    ("over_long", "longest", "kept", "counted"),
    [
        ("skip", 7, [[1, 10, 20, 2], [1, 10, 20, 2, 11, 21, 2]], {"skipped": 1}),
        (
            "truncate_prompt_left",
            6,
            [[1, 10, 20, 2], [1, 20, 2, 11, 21, 2], [1, 2, 12, 22, 23, 2]],
            {"truncated": 2},
        ),
        ("truncate_prompt_left", 4, [[1, 10, 20, 2], [1, 11, 21, 2]], {"truncated": 1, "skipped": 1}),
        ("truncate_answer", 6, [[1, 10, 20, 2], [1, 10, 20, 2, 11, 21]], {"truncated": 1, "skipped": 1}),
        ("truncate_prompt_left", 3, None, {"skipped": 3}),
    ],
)
def test_turns_of_a_conversation_are_cut_one_by_one(
    over_long: str, longest: int, kept: list[list[int]] | None, counted: dict[str, int]
) -> None:
    counts: Counter[str] = Counter()
    options = build(DataOptions, {"path": "x", "max_length": longest, "over_long": over_long}, "")
    (fitted,) = fit_examples([CHAIN], options, 100, 1, counts, alike=False)
    assert (fitted and [list(one.ids) for one in fitted]) == kept and counts == counted


def test_rankings_are_cut_alike_or_not_at_all() -> None:
    """The longer response leaves room for one token of the prompt at 5, and for none at 4."""
    pair = [TokenSequence([1, 10, 11, 20], [0, 0, 0, 1]), TokenSequence([1, 10, 11, 30, 31, 2], [0, 0, 0, 1, 1, 1])]
    for longest, kept, counted in (
        (5, [[1, 11, 20], [1, 11, 30, 31, 2]], {"truncated": 1}),
        (4, None, {"skipped": 1}),
    ):
        counts: Counter[str] = Counter()
        options = DataOptions(path="x", max_length=longest, over_long="truncate_prompt_left")
        (fitted,) = fit_examples([pair], options, 100, 1, counts)
        assert (fitted and [list(one.ids) for one in fitted]) == kept and counts == counted


def opened(folder: Path, template: str, **model: Any) -> Any:
    """A tiny model that is spoken to with `template`."""
    tiny.checkpoint(folder / "base")
    (folder / "own.jinja").write_text(template)
    options = ModelOptions(path=str(folder / "base"), chat_template=str(folder / "own.jinja"), **model)
    return open_setting(options, RuntimeOptions(device="cpu", trackers=[]))


def loaded(folder: Path, setting: Any, rows: list[Any], kind: Any, tokenize: Any) -> tuple[Any, dict[str, float]]:
    """The training examples, and what was logged."""
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options, logged = DataOptions(path=str(folder / "data.jsonl"), validation=0), {}
    run: Any = SimpleNamespace(add_data=lambda sources: None, log=lambda step, values: logged.update(values))
    train, _, _ = load_examples(options, kind, tokenize, setting, run, 0, 1000)
    return train, logged


def said(role: str, content: str, **more: str) -> dict[str, str]:
    return {"role": role, "content": content, **more}


def test_what_a_template_leaves_out_is_counted_where_that_is_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    template = "{% for m in messages %}{{ m.content }}~{% endfor %}"
    thought = said("assistant", "yes", reasoning="hm")
    rows = [
        {"messages": [said("user", "a~"), thought]},
        {"messages": [said("user", "b"), thought, said("user", "c"), said("assistant", "no")]},
    ]

    def load(**model: Any) -> tuple[Any, dict[str, float]]:
        setting = opened(tmp_path, template, **model)
        turns = lambda records: setting.format.turns_of([(one.messages, None) for one in records])  # noqa: E731
        return loaded(tmp_path, setting, rows, Demonstration, turns)

    with pytest.raises(InputError, match=r"leaves out assistant\.reasoning.*on_unrendered: warn"):
        load()
    train, logged = load(on_unrendered="warn")
    # The thought of the second row is missed as an answer, and again in what stands before the next one.
    assert logged == {"data/train": 2, "data/validation": 0, "data/unrendered": 3, "data/control_text": 1}
    assert sorted(len(one.ids) for example in train for one in example) == [6, 7, 11]
    assert "data: the chat template leaves out 3 parts of messages" in caplog.messages


def test_answers_without_weight_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    template = (
        "{% for m in messages %}{{ '!' if m.role == 'assistant' and not loop.last }}{{ m.content }}~{% endfor %}"
    )
    setting = opened(tmp_path, template)
    best = [said("assistant", "b"), said("user", "c"), said("assistant", "d")]
    rows = [{"prompt": [said("user", "a")], "responses": [best, [said("assistant", "e")]], "ranks": [1, 2]}]
    train, logged = loaded(
        tmp_path, setting, rows, Comparison, lambda records: ranked_sequences(setting.format, records)
    )
    assert logged == {"data/train": 1, "data/validation": 0, "data/unextended_turns": 1}
    assert [sum(one.weights) for one in train[0]] == [2, 2], "`d~` and `e~`, and nothing for `!b~`"
    assert any(message.startswith("data: 1 of 3 answers have weight 0") for message in caplog.messages)


def test_options_that_could_not_hold() -> None:
    with pytest.raises(InputError, match=r"continue trains the incoming adapter on; remove model\.lora, or use merge"):
        build(ModelOptions, {"path": "x", "adapter": "continue", "lora": {}}, "model")
    train = TrainOptions(learning_rate=1.0, patience=3)
    check_patience(DataOptions(path="x"), train)
    with pytest.raises(ValueError, match=r"data\.validation is 0"):
        check_patience(DataOptions(path="x", validation=0), train)
