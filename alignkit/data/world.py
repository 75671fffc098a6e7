"""Generates the embedded world's corpus and records by seed; knows no file and no model.

The facts, the sentence patterns and the true utility stand in `reward_models.world_tables` and `reward_models.world`.
Row i of a kind depends only on (kind, split, seed, i), so fewer rows are a prefix of more.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from random import Random
from typing import Literal, NamedTuple

from alignkit.config import InputError
from alignkit.data.world_text import COMPARED, DEMONSTRATED, document, pick, reply
from alignkit.records import Comparison, Demonstration, Document, Feedback, Message, Prompt
from reward_models import world_tables as tables
from reward_models.world import utility
from reward_models.world_tables import Question, read_question

Kind = Literal["corpus", "demonstrations", "comparisons", "prompts", "feedback"]
RANKED = 4  # responses of one comparison
SHARPNESS = 1.5  # nats of preference per point of utility
ACCEPTABLE = 5.0  # points of utility that a user calls good half the time: the median of compared replies

_KINDS = ("attribute", "yes_no", "compare", "sum", "story", "unknowable", "unsafe", "lookalike")
_WEIGHTS = (26, 14, 4, 4, 4, 14, 17, 17)
_FILLED = ("attribute", "thing", "value", "relation", "sign", "name", "friend", "goods", "change", "person")


class Asked(NamedTuple):
    """A prompt with what it means and what the training splits have never seen of it."""

    text: str
    question: Question
    novelty: str  # "none", "pattern", "words" or "both"


def generate(
    kind: str, rows: int, seed: int, split: str = "train"
) -> list[Document] | list[Demonstration] | list[Comparison] | list[Prompt] | list[Feedback]:
    """`rows` records of a kind. The corpus has one split; the others have `train` and `heldout`.

    Every heldout prompt follows a pattern or uses words (or both) that no training prompt has; its words all stand in
    the corpus. Raises InputError for a kind, split or number of rows that does not exist.
    """
    makers: Mapping[str, Callable[[Random, str, str], Document | Demonstration | Comparison | Prompt | Feedback]] = {
        "corpus": _document,
        "demonstrations": _demonstration,
        "comparisons": _comparison,
        "prompts": _prompt,
        "feedback": _feedback,
    }
    if kind not in makers:
        raise InputError(f"data.world: {kind!r} does not exist; it is one of {', '.join(makers)}")
    if split not in ("train", "heldout"):
        raise InputError(f"data.split: {split!r} does not exist in the world; it is train or heldout")
    if rows < 1:
        raise InputError(f"data.rows: {rows} is not a number of rows; give one above 0")
    return [
        makers[kind](Random(f"{kind}/{split}/{seed}/{row}"), split, f"{kind}-{split}-{seed}-{row}")
        for row in range(rows)
    ]


def ask(rng: Random, split: str) -> Asked:
    """Draw a prompt of a split: `train`, `heldout`, or `corpus` (training patterns with all words)."""
    kind = pick(rng, _KINDS, _WEIGHTS)
    novelty = "none" if split != "heldout" else pick(rng, ("pattern", "words", "both"))
    if novelty != "none" and kind == "sum":
        novelty = "pattern"  # a sum has no word that could be new
    side = "heldout" if novelty in ("pattern", "both") else "train"
    patterns = tables.PATTERNS["request" if kind in ("unsafe", "lookalike") else kind][side]
    pattern = pick(rng, patterns)
    which = "all" if split == "corpus" else "new" if novelty in ("words", "both") else "old"
    text = _fill(rng, kind, pattern, which)
    if rng.random() < 0.4:
        text = f"{pick(rng, tables.OPENINGS[side])} {text}"
    question = read_question(text)
    assert question is not None and question.kind == kind, text
    return Asked(text, question, novelty)


@cache
def _words(slot: str, which: str) -> tuple[str, ...]:
    """The words that may fill a slot: `old` ones of training prompts, `new` ones held out of them, or `all`."""
    choices, held = tables.SLOTS[slot], tables.HELD_OUT.get("name" if slot == "friend" else slot, ())
    if which == "all" or not held:
        return choices
    return tuple(word for word in choices if (word in held) == (which == "new"))


def _fill(rng: Random, kind: str, pattern: str, which: str) -> str:
    """A pattern with its slots filled so that the question has one clear meaning."""
    slots = {slot: pick(rng, _words(slot, which)) for slot in _FILLED}
    if kind in ("unsafe", "lookalike"):
        held = tables.HELD_OUT["act"]
        acts = tables.UNSAFE if kind == "unsafe" else tables.LOOKALIKES
        options = tuple(act for act in acts if which == "all" or (act in held) == (which == "new"))
        return pattern.format(act=pick(rng, options).format(person=slots["person"]))
    while slots["friend"] == slots["name"]:
        slots["friend"] = pick(rng, _words("friend", which))
    known = tables.fact(slots["thing"], tables.ATTRIBUTE_OF[slots["value"]])
    if kind == "yes_no" and known is not None and rng.random() < 0.4:
        slots["value"] = known
    a, b = 1 + int(rng.random() * tables.LARGEST), 1 + int(rng.random() * tables.LARGEST)
    if kind == "compare" and a == b:
        a = a % tables.LARGEST + 1
    if a < b and (slots["sign"] if kind == "sum" else slots["change"]) in ("minus", "loses"):
        a, b = b, a
    slots["a"], slots["b"] = str(a), str(b)
    return pattern.format(**slots)


def _document(rng: Random, split: str, id: str) -> Document:
    asked = ask(rng, "corpus")
    return Document(text=document(rng, asked.question, asked.text), id=id)


def _demonstration(rng: Random, split: str, id: str) -> Demonstration:
    asked = ask(rng, split)
    said = reply(asked.question, rng, DEMONSTRATED)
    return Demonstration(
        messages=(Message(role="user", content=asked.text), Message(role="assistant", content=said)),
        id=id,
        columns=_columns(asked),
    )


def _comparison(rng: Random, split: str, id: str) -> Comparison:
    """k different replies, ranked by a Plackett-Luce draw: sorted by utility plus Gumbel noise."""
    asked = ask(rng, split)
    replies: list[str] = []
    while len(replies) < RANKED:
        said = reply(asked.question, rng, COMPARED)
        if said not in replies:
            replies.append(said)
    noisy = [SHARPNESS * utility(asked.text, said) - math.log(-math.log(1.0 - rng.random())) for said in replies]
    ranks = tuple(1 + sum(other > mine for other in noisy) for mine in noisy)
    return Comparison(
        prompt=(Message(role="user", content=asked.text),),
        responses=tuple((Message(role="assistant", content=said),) for said in replies),
        ranks=ranks,
        id=id,
        columns=_columns(asked),
    )


def _prompt(rng: Random, split: str, id: str) -> Prompt:
    asked = ask(rng, split)
    return Prompt(messages=(Message(role="user", content=asked.text),), id=id, columns=_columns(asked))


def _feedback(rng: Random, split: str, id: str) -> Feedback:
    """A reply with a user's verdict: good with probability σ(SHARPNESS · (utility - ACCEPTABLE))."""
    asked = ask(rng, split)
    said = reply(asked.question, rng, COMPARED)
    liked = 1.0 / (1.0 + math.exp(-SHARPNESS * (utility(asked.text, said) - ACCEPTABLE)))
    return Feedback(
        prompt=(Message(role="user", content=asked.text),),
        response=(Message(role="assistant", content=said),),
        label=rng.random() < liked,
        id=id,
        columns=_columns(asked),
    )


def _columns(asked: Asked) -> dict[str, str]:
    return {"kind": asked.question.kind, "novelty": asked.novelty}


class Limits(NamedTuple):
    """The best that any reward model can reach on comparisons of this world."""

    nll: float  # nats a pair: the mean entropy of the label given both responses
    accuracy: float  # the mean probability that the truly better response is the one preferred
    pairs: int


def limits(comparisons: Sequence[Comparison]) -> Limits:
    """The floor of the NLL and the ceiling of the accuracy, each ranking weighing 1, spread over its untied pairs.

    A Plackett-Luce ranking prefers i to j with p = σ(SHARPNESS · (u_i - u_j)) whatever else it ranks, so a pair
    costs at least H(p) and is foretold at best with max(p, 1-p). Expectations over the labels, not over those drawn.
    """
    nll = accuracy = weight = 0.0
    pairs = 0
    for comparison in comparisons:
        prompt = comparison.prompt[-1].content
        utilities = [utility(prompt, response[-1].content) for response in comparison.responses]
        gaps = [
            SHARPNESS * abs(utilities[i] - utilities[j])
            for i in range(len(utilities))
            for j in range(i)
            if comparison.ranks[i] != comparison.ranks[j]
        ]
        if not gaps:
            continue
        right = [1.0 / (1.0 + math.exp(-gap)) for gap in gaps]
        nll -= sum(p * math.log(p) + (1 - p) * math.log1p(-p) for p in right) / len(gaps)
        accuracy += sum(right) / len(gaps)
        weight += 1.0
        pairs += len(gaps)
    if not pairs:
        raise InputError("no comparison with an untied pair: there is no floor or ceiling to compute")
    return Limits(nll / weight, accuracy / weight, pairs)
