"""Rules, words and functions as rewards: worked examples, and what they say about bad input."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from alignkit.config import InputError
from alignkit.records import Completion, Message, Scores
from reward_models.combined import combined
from reward_models.functions import Reward, from_function, scaled
from reward_models.learned import learned
from reward_models.lexicon import SENTIMENT, lexicon, read_lexicon
from reward_models.rules import contains, exact_match, length, number, pattern, repetition


def said(text: str, ids: int = 3, question: str = "how many?", **columns: Any) -> Completion:
    prompt = (Message(role="user", content=question),)
    return Completion(prompt=prompt, response=Message(role="assistant", content=text), columns=columns, ids=(1,) * ids)


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        ("So it is 72.", "48 + 24 = 72\n#### 72", 1),
        ("72 apples, not 73", "72", 0),
        ("It costs $1,234.50", "1234.5", 1),
        ("minus: -7", "7", 0),
        ("1e3", 1000, 1),
        ("I do not know", "4", 0),
        ("0.30000001", "0.3", 1),
        ("1e1000000", "4", 0),
        ("1e1000000", "1e1000000", 1),
        ("-1e999999999999999999999", "4", 0),
        ("it is 12,5", "5", 1),  # no thousands' comma: 12 and 5
        ("The result is −5", "5", 0),  # U+2212
        ("The result is −5", "-5", 1),
        ("it is -5", "－5", 1),
        ("1e−3", "0.001", 1),
        ("x=-5", "-5", 1),
        ("_-5_", "-5", 1),
        ("COVID-19", "19", 1),
        ("3-5", "5", 1),
        ("3−5", "5", 1),
        ("20°-25", "25", 1),
        ("f(3)-5", "-5", 0),
        ("-1,000.5", "-1000.5", 1),
        ("0", "0.0000001", 0),
        ("0.0000001", "0", 0),
        ("0.0", "0", 1),
        ("0.000123", "0.000124", 0),
        ("0.333333", "0.3333333333", 1),
    ],
)
def test_last_number(text: str, answer: Any, expected: float) -> None:
    assert number()([said(text, answer=answer)]).total == (expected,)


def test_text_rules() -> None:
    answers = [said(" Blue\n whale ", answer="blue whale"), said("a blue whale.", answer="blue whale")]
    assert exact_match()(answers).total == (1, 0)
    assert contains()([*answers, said("the bluest whale", answer="blue")]).total == (1, 1, 0)
    assert contains("key")([said("c++ it is", key="C++")]).total == (1,)
    assert pattern(r"<answer>.*</answer>")([said("so <answer>\n4</answer>!"), said("4")]).total == (1, 0)
    assert pattern(r"\d+", whole=True)([said("12"), said("12.")]).total == (1, 0)
    assert length(10, 2)([said("", ids=n) for n in (10, 12, 13, 5)]).total == pytest.approx((0, 0, -0.1, -0.3))


def test_a_pattern_has_a_time_limit(caplog: pytest.LogCaptureFixture) -> None:
    """(a|aa)+ tries more ways than 10^12 before it gives up: hours."""
    asked = [said("a" * 60), said("a" * 60 + "!"), said("b")]
    assert pattern(r"^(a|aa)+$", timeout=0.2)(asked).total == (1, 0, 0)
    (message,) = caplog.messages
    assert message.startswith("reward pattern: no match of '^(a|aa)+$' within 0.2 s: 'aaaa")
    started = time.monotonic()
    assert pattern(r"(a|aa)+", whole=True)(asked[1:2]).total == (0,) and time.monotonic() - started < 5


@pytest.mark.parametrize(
    "regex",
    [
        r"x{e}", r"x{1<=e<=2}", r"\\frac{d}", r"\\{e}", r"\{e}", r"[{e}]+z", r"a{2}", r"a{,1}b", r"a{1,}b{2,3}",
        r"{e}", r"\N{LATIN SMALL LETTER E}", r"(?i)X\{E}", r"(?P<n>[a-c])(?P=n)", r"(?<!a)b", r"\bab\b", r"^\d+$",
    ],
)  # fmt: skip
def test_a_pattern_means_what_it_means_to_re(regex: str) -> None:
    texts = [
        "x", "x{e}", "X{E}", r"\frac{d}", r"\frac", r"\{e}", r"\e", "{e}", "{z", "aab", "abbb", "e", "12", "a b\nb",
    ]  # fmt: skip
    for whole in (False, True):
        find = getattr(re.compile(regex, re.DOTALL), "fullmatch" if whole else "search")
        expected = tuple(float(find(text) is not None) for text in texts)
        assert pattern(regex, whole)([said(text) for text in texts]).total == expected


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: number()([said("4")]), "no column 'answer'"),
        (lambda: number()([said("4", answer="four")]), "holds no number: 'four'"),
        (lambda: pattern("("), "not a regular expression"),
        (lambda: pattern(r"\p{L}"), "not a regular expression: bad escape"),
        (lambda: length(0), "target >= 1"),
    ],
)
def test_rules_name_what_is_wrong(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        make()


def test_sentiment() -> None:
    texts = [
        "She was happy and kind.",
        "He was sad.",
        "The box was red.",
        "She was not happy.",
        "They weren't very sad",
    ]
    assert lexicon()([said(text) for text in texts]).total == pytest.approx((2 / 3, -1 / 2, 0, -1 / 2, 1 / 2))
    scores = lexicon({"ox": 2.0, "cat": -0.5})([said("Ox, ox and CAT; oxen")])
    assert scores.total == pytest.approx((3.5 / 5.5,))
    assert scores.parts == {"positive": (4.0,), "negative": (0.5,)}
    assert all(re.fullmatch("[a-z]+", word) for word in SENTIMENT) and min(SENTIMENT.values()) == -1


def test_lexicon_files(tmp_path: Path) -> None:
    file = tmp_path / "words.json"
    file.write_text(json.dumps({"Good": 2, "bad": -1.5}))
    assert read_lexicon(file) == {"good": 2.0, "bad": -1.5}
    for content, message in (("[1]", "JSON object"), ('{"a": "b"}', "weight of 'a'"), ("{", "not JSON")):
        file.write_text(content)
        with pytest.raises(InputError, match=message):
            read_lexicon(file)
    with pytest.raises(InputError, match="cannot be read"):
        read_lexicon(tmp_path / "none.json")


def test_functions_as_trl_calls_them() -> None:
    def plain(completions: list[str], answer: list[Any], **kwargs: Any) -> list[float]:
        assert kwargs["prompts"] == ["how many?"] * 2 and kwargs["completion_ids"] == [[1, 1, 1]] * 2
        return [float(text == wanted) for text, wanted in zip(completions, answer, strict=True)]

    def chatty(prompts: Any, completions: Any, **kwargs: Any) -> list[float]:
        assert prompts[0] == [{"role": "user", "content": "how many?"}]
        return [len(completion[0]["content"]) for completion in completions]

    two = [said("4", answer="4"), said("five")]
    assert from_function(plain)(two).total == (1, 0)
    assert from_function(chatty, conversational=True)(two).total == (1, 4)
    assert scaled(from_function(chatty, conversational=True), -2.0, 5.0)(two).total == (-2, -5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), None])
def test_a_bad_score_names_its_completion(bad: float | None) -> None:
    def broken(completions: list[str], **kwargs: Any) -> list[float | None]:
        return [0.0, bad]

    with pytest.raises(InputError, match=r"broken.*completion 1 is (nan|inf|None).*'five' in answer to 'how many\?'"):
        from_function(broken)([said("4"), said("five")])
    with pytest.raises(InputError, match="returned 1 scores for 2 completions"):
        learned(lambda completions: torch.zeros(1))([said("4"), said("five")])


def test_learned_takes_tensors_and_lists() -> None:
    two = [said("4"), said("five")]
    assert learned(lambda c: torch.tensor([len(x.response.content) / 2 for x in c]))(two).total == (0.5, 2.0)
    assert learned(lambda c: [1.0, 2.0])(two).total == (1.0, 2.0)


def fixed(*values: float, **more: Any) -> Reward:
    return lambda completions: Scores(total=values, **more)


def test_several_rewards_as_one_by_hand() -> None:
    asked = [said("a"), said("b")]
    members = {"quality": fixed(1.0, 3.0, parts={"tone": (0.1, 0.2)}), "brevity": fixed(2.0, -1.0)}
    expected = {"sum": (3, 2), "mean": (1.5, 1), "min": (1, -1), "lower": (1.5 - 2 * 0.5, 1 - 2 * 2)}
    for combine, totals in expected.items():
        scores = combined(members, combine, deviations=2.0)(asked)  # type: ignore[arg-type]
        assert scores.total == pytest.approx(totals)
        assert scores.parts == {"quality": (1, 3), "brevity": (2, -1), "quality/tone": (0.1, 0.2)}
        assert scores.steps is None


def test_rewards_inside_responses_add_up_and_are_scaled() -> None:
    asked = [said("a"), said("b")]
    one, other = fixed(0.0, 0.0, steps=(((0, 1.0),), ())), fixed(0.0, 0.0, steps=(((0, 1.0),), ((1, 2.0),)))
    inside = {"a": one, "b": scaled(other, 3.0)}
    assert combined(inside)(asked).steps == (((0, 1.0), (0, 3.0)), ((1, 6.0),))
    with pytest.raises(InputError, match="no meaning for rewards inside a response"):
        combined(inside, "min")(asked)


def test_repetition_is_the_share_of_phrases_said_before() -> None:
    asked = [said("so much fun and So much fun"), said("one two three"), said("a b"), said("x x x x x")]
    assert repetition(3)(asked).total == pytest.approx([-1 / 5, 0, 0, -2 / 3])
    assert repetition(1)(asked[3:]).total == pytest.approx([-4 / 5])
