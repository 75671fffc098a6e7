"""The generated world: seeds, held-out patterns and words, size, and the known limits of its labels."""

import math
import random
from itertools import product

import pytest

from alignkit.config import InputError
from alignkit.data.world import ACCEPTABLE, SHARPNESS, generate, limits
from alignkit.records import Comparison, Message
from reward_models.world import parts, utility
from reward_models.world_tables import HELD_OUT, PATTERNS, SLOTS, answer, matcher, read_question, words

ROWS = 4000

NEW_VERBS = {act.split()[0] for act in HELD_OUT["act"]}


def asked(kind: str, split: str, rows: int = ROWS, seed: int = 0) -> list[str]:
    records = generate(kind, rows, seed, split)
    return [getattr(r, "prompt", None) or r.messages for r in records]  # type: ignore[union-attr]


def prompts(kind: str, split: str, rows: int = ROWS, seed: int = 0) -> list[str]:
    return [messages[0].content for messages in asked(kind, split, rows, seed)]  # type: ignore[attr-defined]


def everything_trained_on() -> list[str]:
    """Every text of demonstrations, comparisons and training prompts."""
    texts = prompts("prompts", "train")
    for demonstration in generate("demonstrations", ROWS, 1):
        texts += [message.content for message in demonstration.messages]  # type: ignore[union-attr]
    for comparison in generate("comparisons", 1000, 2):
        texts.append(comparison.prompt[0].content)  # type: ignore[union-attr]
        texts += [response[0].content for response in comparison.responses]  # type: ignore[union-attr]
    return texts


@pytest.mark.parametrize("kind", ["corpus", "demonstrations", "comparisons", "prompts", "feedback"])
def test_rows_depend_on_the_seed_alone_and_fewer_are_a_prefix_of_more(kind: str) -> None:
    rows = generate(kind, 60, 7)
    assert rows == generate(kind, 60, 7)
    assert rows[:20] == generate(kind, 20, 7)
    assert rows != generate(kind, 60, 8)


def test_there_are_more_than_a_hundred_thousand_distinct_prompts() -> None:
    old = {slot: [w for w in SLOTS[slot] if w not in HELD_OUT[slot]] for slot in ("name", "goods")}
    numbers = [str(n) for n in range(1, 7)]
    openings = ("", "hello, ", "quick question: ", "tell me please, ", "one more thing: ", "my friend, ", "i wonder: ")
    pairs = list(product(openings, old["name"], old["name"], old["goods"], numbers, numbers))
    together = {
        f"{o}{x} has {a} {g} and {y} has {b}. {question}"
        for o, x, y, g, a, b in pairs
        for question in (f"how many {g} do they have together?", f"tell me how many {g} they have together.")
        if x != y
    }
    who = {f"{o}does {x} with {a} {g} have more than {y} with {b}?" for o, x, y, g, a, b in pairs if x != y and a != b}
    assert len(together | who) >= 100_000
    for text in random.Random(0).sample(sorted(together | who), 300):
        question = read_question(text)
        assert question is not None and answer(question) is not None
    # Those three patterns of nine kinds are what the generator draws, too.
    drawn = {t for t in prompts("prompts", "train") if "together" in t or t in who}
    assert len(drawn) > 100 and drawn <= together | who


def test_held_out_prompts_share_no_pattern_or_else_bring_words_never_trained_on() -> None:
    held = {w for slot in ("thing", "name", "goods", "person") for w in HELD_OUT[slot]} | {
        "crush",
        "whip",
        "hit",
        "drop",
    }
    heldout = generate("prompts", ROWS, 3, "heldout")
    for prompt in heldout:
        text, novelty = prompt.messages[0].content, prompt.columns["novelty"]  # type: ignore[union-attr]
        question = read_question(text)
        assert question is not None
        new_pattern = not any(question.pattern in splits["train"] for splits in PATTERNS.values())
        new_words = bool(held & set(words(text)))
        assert (new_pattern, new_words) == {
            "pattern": (True, False),
            "words": (False, True),
            "both": (True, True),
        }[novelty]
    assert {p.columns["novelty"] for p in heldout} == {"pattern", "words", "both"}  # type: ignore[union-attr]


def test_held_out_words_stand_in_the_corpus_and_in_nothing_trained_on_after_it() -> None:
    corpus = " ".join(document.text for document in generate("corpus", ROWS, 0))  # type: ignore[union-attr]
    trained = set(words(" ".join(everything_trained_on())))
    for held in (HELD_OUT["thing"], HELD_OUT["name"], HELD_OUT["goods"], HELD_OUT["person"]):
        for word in held:
            assert corpus.count(word) >= 20 and word not in trained
    for word in ("crush", "garlic", "whip", "cream"):
        assert word in words(corpus) and word not in trained
    assert {w for text in prompts("prompts", "heldout") for w in words(text)} <= set(words(corpus))


def test_no_training_pattern_reads_a_held_out_prompt() -> None:
    for splits in PATTERNS.values():
        for pattern in splits["heldout"]:
            assert not any(matcher(p).fullmatch(" ".join(words(pattern))) for p in splits["train"])


def test_responses_are_short_and_understood_and_of_mixed_quality() -> None:
    demonstrations = generate("demonstrations", 2000, 5)
    spoken = [(d.messages[0].content, d.messages[1].content) for d in demonstrations]  # type: ignore[union-attr]
    assert max(sum(w.isalnum() for w in words(response)) for _, response in spoken) <= 16
    assert min(utility(*one) for one in spoken) > 0.0
    correct = sum(parts(*one)["correct"] for one in spoken) / len(spoken)
    assert 0.7 < correct < 0.85
    assert sum(utility(*one) == 7.0 for one in spoken) > 200


def test_a_comparison_ranks_four_different_responses() -> None:
    for comparison in generate("comparisons", 300, 0):
        said = {response[0].content for response in comparison.responses}  # type: ignore[union-attr]
        assert len(said) == 4 and sorted(comparison.ranks) == [1, 2, 3, 4]  # type: ignore[union-attr]


def test_feedback_calls_a_response_good_as_often_as_its_utility_says() -> None:
    likes: dict[float, list[bool]] = {}
    for verdict in generate("feedback", ROWS, 0):
        worth = utility(verdict.prompt[0].content, verdict.response[0].content)  # type: ignore[union-attr]
        likes.setdefault(worth, []).append(verdict.label)  # type: ignore[union-attr]
    common = {worth: labels for worth, labels in likes.items() if len(labels) > 100}
    assert len(common) >= 5
    for worth, labels in common.items():
        chance = 1 / (1 + math.exp(-SHARPNESS * (worth - ACCEPTABLE)))
        error = math.sqrt(chance * (1 - chance) / len(labels))
        assert abs(sum(labels) / len(labels) - chance) < 3.5 * error + 1e-9
    good = sum(map(sum, likes.values())) / ROWS
    assert 0.4 < good < 0.6


def test_the_drawn_labels_meet_the_stated_ceiling_and_floor() -> None:
    """Monte Carlo: how often the label agrees with the true utility, and what the true probabilities cost on it."""
    comparisons: list[Comparison] = generate("comparisons", 4000, 0)  # type: ignore[assignment]
    stated = limits(comparisons)
    agreed = cost = 0.0
    for comparison in comparisons:
        values = [utility(comparison.prompt[0].content, r[0].content) for r in comparison.responses]
        for i in range(4):
            for j in range(i):
                gap = SHARPNESS * (values[i] - values[j])
                label = comparison.ranks[i] < comparison.ranks[j]
                agreed += 0.5 if gap == 0 else (gap > 0) == label
                cost += math.log1p(math.exp(-gap if label else gap))
    pairs = 6 * len(comparisons)
    assert stated.pairs == pairs
    # The standard error of a mean of 24,000 dependent draws is below 0.005.
    assert stated.accuracy == pytest.approx(agreed / pairs, abs=0.012)
    assert stated.nll == pytest.approx(cost / pairs, abs=0.015)
    assert 0.8 < stated.accuracy < 0.9


def test_limits_of_one_pair_are_the_closed_form() -> None:
    prompt = (Message(role="user", content="what is 3 plus 4?"),)
    responses = tuple((Message(role="assistant", content=text),) for text in ("it is 7.", "obviously, it is 7."))
    one = Comparison(prompt=prompt, responses=responses, ranks=(2, 1))
    p = 1 / (1 + math.exp(-1.5 * 0.5))  # utilities 6.5 and 6
    assert limits([one]).accuracy == pytest.approx(p)
    assert limits([one]).nll == pytest.approx(-p * math.log(p) - (1 - p) * math.log(1 - p))


@pytest.mark.parametrize(
    ("kind", "rows", "split", "told"),
    [("poems", 5, "train", "poems"), ("prompts", 5, "test", "heldout"), ("prompts", 0, "train", "rows")],
)
def test_what_the_world_does_not_have_is_named(kind: str, rows: int, split: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        generate(kind, rows, 0, split)
