"""Records in tokens, with a tokenizer of one token a character, counted by hand."""

from pathlib import Path

import pytest
from records import demonstration, document, found, pair, prompt
from tiny import tokenizer

from alignkit.config import InputError
from alignkit.data.checking.tokens import TokenSample
from alignkit.records import Comparison, Demonstration, Document, Prompt

THINKS = (
    "{% for m in messages %}{% if not loop.last or m.role != 'assistant' or '?' not in m.content %}{{ m.content }}"
    "{% endif %}{{ eos_token }}{% endfor %}"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    tokenizer().save_pretrained(folder)
    return str(folder)


def test_lengths_and_what_a_limit_costs(model: str) -> None:
    """Template "none": prompt, answer and an end token."""
    sample = TokenSample(model, "none", Demonstration, 10, 8)
    told = found(sample, demonstration("abc", "de"), demonstration("abcde", "fghij"), demonstration("abcdefghi", "j"))
    parts = {one.part: (one.unit, one.count, one.total, one.max) for one in sample.distributions}
    assert parts == {"prompt": ("tokens", 3, 17, 9), "answer": ("tokens", 3, 11, 6), "whole": ("tokens", 3, 28, 11)}
    numbers = told["over_long"].numbers
    assert (numbers["count"], numbers["answer_tokens"]) == (2, 11)
    assert numbers["answer_tokens_lost"] == 3 + 2  # 5 + 6 - 8, and all of an answer whose prompt leaves no room
    assert "data.max_length: 11" in told["over_long"].mend
    assert told["token_contract"].severity == told["untrained"].severity == "fine"


def test_length_bias_in_tokens(model: str) -> None:
    sample = TokenSample(model, "none", Comparison, 10, None)
    told = found(sample, *[pair("q", "abcde", "a")] * 20)
    assert (told["length_bias_tokens"].numbers["longer"], told["length_bias_tokens"].severity) == (1.0, "warning")
    assert "over_long" not in told


def test_what_a_template_leaves_out_is_a_problem(model: str, tmp_path: Path) -> None:
    path = tmp_path / "thinks.jinja"
    path.write_text(THINKS)
    sample = TokenSample(model, str(path), Demonstration, 10, None)
    one = found(sample, demonstration("a", "b"), demonstration("a", "b?"))["token_contract"]
    assert (one.severity, one.numbers, [s.place for s in one.samples]) == ("problem", {"count": 1, "of": 2}, ["f:2"])
    assert "leaves out assistant.content" in one.samples[0].texts[0]


def test_a_sample_is_said_to_be_one(model: str) -> None:
    sample = TokenSample(model, "none", Prompt, 5, 100)
    told = found(sample, *[prompt("a" * n) for n in range(1, 51)])
    assert told["over_long"].measured == "none of 5 records of a sample of 50 is longer than 100 tokens"
    assert sample.distributions[0].count == 5
    again = TokenSample(model, "none", Prompt, 5, 100)
    found(again, *[prompt("a" * n) for n in range(1, 51)])
    assert again.distributions == sample.distributions


def test_documents_are_cut_and_lose_nothing(model: str) -> None:
    told = found(TokenSample(model, None, Document, 5, 10), document("a" * 30))
    assert (told["over_long"].severity, told["over_long"].numbers["count"]) == ("note", 1)


def test_a_model_without_a_template_needs_one_named(model: str) -> None:
    with pytest.raises(InputError, match="--chat-template chatml"):
        TokenSample(model, None, Demonstration, 5, None)


def test_marks_of_the_template_in_a_text_are_a_warning(model: str) -> None:
    """ "~" ends an answer of this tokenizer."""
    one = found(
        TokenSample(model, "none", Demonstration, 5, None), demonstration("a", "b ~ c"), demonstration("a", "b")
    )
    assert (one["control_text"].severity, one["control_text"].numbers) == ("warning", {"count": 1})


def test_unknown_tokens_are_counted(tmp_path: Path) -> None:
    words = tokenizer("ab?")
    words.unk_token = "?"
    words.save_pretrained(tmp_path)
    told = found(TokenSample(str(tmp_path), None, Document, 5, None), document("abxyab"))
    assert told["unknown_tokens"].numbers == {"count": 2, "of": 7}  # an end token after six characters
    assert told["unknown_tokens"].severity == "warning"
