"""The sentences of the embedded world: what its corpus says and how its crowd replies; draws nothing by itself.

Every function takes a `random.Random` and returns text, so the same generator state gives the same sentence.
"""

from collections.abc import Sequence
from random import Random
from typing import TypeVar

from reward_models import world_reading as reading
from reward_models import world_tables as tables
from reward_models.world_tables import Question

T = TypeVar("T")

# How the crowd replies: the weights of what is said (right, wrong, unsure, declining) where the prompt has an answer,
# where nobody knows it, and where it is unsafe ("wrong" then means made up, or helpful).
DEMONSTRATED = {"known": (80, 8, 5, 7), "unknown": (0, 25, 70, 5), "unsafe": (0, 22, 5, 73)}
COMPARED = {"known": (52, 18, 15, 15), "unknown": (0, 45, 45, 10), "unsafe": (0, 45, 10, 45)}
MANNERS = (40, 40, 20)  # courteous, plain, rude
FILLERS = (60, 25, 15)  # none, one, two
LONGEST = 16  # words of a reply

SMALL_TALK = (
    "good morning, please come in.",
    "now i ask you: do you think so?",
    "please name your friends, i do not know them.",
    "which way does the road go? i have no map.",
    "i have a good friend and i tell him how i am.",
    "anna will buy bread tonight. who will buy milk?",
    "do you know what it is? please tell me the best way.",
    "i do not think that it is true, what do you think?",
    "sorry, i am late. i am afraid, i cannot come.",
    "sure, come in. of course, with pleasure.",
    "thank you for asking, i will help you with that.",
    "obviously, that is a silly question. come on, stop asking.",
    "that is a good question, many people ask this. let me think about it.",
    "the road is 12 years old. the house is not as old.",
    "hello, my friend, quick question: i wonder how you are. one more thing: hello!",
)

# How the corpus writes a dialogue down: formats differ, as on the web.
DIALOGUES = (
    "{a}: {asked} {b}: {said}.",
    "{a}: {asked}\n{b}: {said}.\n",
    "{a} asks {b}: {asked} {b} says: {said}.",
    "question: {asked} answer: {said}.",
    "question\n{asked}\nanswer\n{said}.\n",
)


def pick(rng: Random, options: Sequence[T], weights: Sequence[int] | None = None) -> T:
    """One of the options, by weight; uses one `random()`, whose stream is the same in every Python version."""
    draw = rng.random() * (len(options) if weights is None else sum(weights))
    if weights is None:
        return options[int(draw)]
    for option, weight in zip(options, weights, strict=True):
        if draw < weight:
            return option
        draw -= weight
    raise AssertionError("the weights sum to more than a draw can reach")


def reply(question: Question, rng: Random, mixture: dict[str, tuple[int, ...]]) -> str:
    """One worker's reply, good or bad: what is said by `mixture`, then manner and fillers; at most LONGEST words."""
    truth = tables.answer(question)
    kind = "unsafe" if question.kind == "unsafe" else "known" if truth is not None else "unknown"
    content = pick(rng, ("right", "wrong", "unsure", "declining"), mixture[kind])
    if content == "right":
        assert truth is not None
        body = claim(question, truth, rng)
    elif content == "wrong":
        body = claim(question, _wrong(question, truth, rng), rng)
    else:
        body = pick(rng, reading.UNSURE[:3] if content == "unsure" else reading.DECLINING)
    withheld = content in ("unsure", "declining")
    opening = ""
    manner = pick(rng, ("courteous", "plain", "rude"), MANNERS)
    if manner == "courteous":
        opening = pick(rng, reading.APOLOGETIC if withheld else reading.OBLIGING) + ", "
    elif manner == "rude":
        opening = pick(rng, reading.RUDE_OPENINGS) + ", "
    sentences = [opening + body]
    for _ in range(pick(rng, (0, 1, 2), FILLERS)):
        filler = pick(rng, reading.FILLERS)
        if filler not in sentences and len(tables.words(" ".join([filler, *sentences]))) <= LONGEST:
            sentences.insert(0, filler)
    if manner == "rude" and len(sentences) == 1 and rng.random() < 0.5:
        sentences = [body, pick(rng, reading.RUDE_SENTENCES)]
    return " ".join(f"{sentence}." for sentence in sentences)


def claim(question: Question, said: str, rng: Random) -> str:
    """A sentence, without its full stop, that answers the question with `said`."""
    slots = question.slots
    if question.kind == "attribute":
        forms = ("it is {said}", "it is {said}", "the {thing} is {said}")
    elif question.kind == "yes_no":
        value = slots["value"] if said == "yes" else _instead(question, rng)
        forms = (f"it is {value}", f"it is {value}", f"the {{thing}} is {value}")
    elif question.kind == "compare":
        forms = ("{said}",)
    elif question.kind in ("sum", "story"):
        forms = ("it is {said}",)
    elif question.kind == "unknowable":
        forms = (said,)
    else:
        forms = ("you can {said}",)
    return pick(rng, forms).format(said=said, **slots)


def _instead(question: Question, rng: Random) -> str:
    """What a thing is said to be by those who deny what a yes-or-no question says of it: the fact, if it can be."""
    asked = question.slots["value"]
    attribute = tables.ATTRIBUTE_OF[asked]
    known = tables.fact(question.slots["thing"], attribute)
    others = tuple(value for value in tables.VALUES[attribute] if value != asked)
    return pick(rng, others) if known in (None, asked) else known


def _wrong(question: Question, truth: str | None, rng: Random) -> str:
    """Something false, made up or harmful to say."""
    slots = question.slots
    if question.kind == "attribute":
        options = tables.VALUES[slots["attribute"]]
    elif question.kind in ("yes_no", "compare"):
        options = ("yes", "no")
    elif question.kind in ("sum", "story"):
        assert truth is not None
        options = tuple(str(n) for n in range(max(0, int(truth) - 3), min(2 * tables.LARGEST, int(truth) + 3) + 1))
    elif question.kind == "unknowable":
        return made_up(question, rng)
    else:
        options = ((tables.UNSAFE if question.kind == "unsafe" else tables.LOOKALIKES)[slots["act"]],)
        if question.kind == "lookalike":
            options = tuple(tables.LOOKALIKES[act] for act in tables.LOOKALIKES if act not in tables.HELD_OUT["act"])
    return pick(rng, tuple(option for option in options if option != truth))


def made_up(question: Question, rng: Random) -> str:
    """An answer that nobody can have: an owner, an age, a buyer, a dream or a wish."""
    name = pick(rng, tables.NAMES[:-2])
    if "wish" in question.pattern or "dream" in question.pattern:
        form = "the wish of {name} is {goods}" if "wish" in question.pattern else "{name} dreams of {goods}"
        return form.format(name=question.slots["name"], goods=pick(rng, tables.GOODS[:-2]))
    thing = question.slots["thing"]
    if "old" in question.pattern:
        return f"the {thing} is {pick(rng, tables.NUMBERS)} years old"
    return f"{name} {'will buy' if 'buy' in question.pattern else 'owns'} the {thing}"


def document(rng: Random, ask: Question, prompt: str) -> str:
    """One document of the corpus: two to five sentences about one matter; `ask` and `prompt` serve its dialogues."""
    topic = pick(
        rng,
        ("card", "sums", "story", "acts", "unknowable", "talk", "dialogue"),
        (26, 4, 4, 14, 6, 2, 44),
    )
    if topic == "card":
        return _card(pick(rng, tables.THINGS), rng)
    if topic == "sums":
        return " ".join(_sum(rng) for _ in range(3))
    if topic == "story":
        return _story(rng)
    if topic == "acts":
        return " ".join(_act(rng) for _ in range(2))
    if topic == "unknowable":
        return " ".join(_unknowable(rng) for _ in range(2))
    if topic == "talk":
        return " ".join(pick(rng, SMALL_TALK) for _ in range(3))
    form = pick(rng, DIALOGUES)
    return form.format(a=pick(rng, tables.NAMES), b=pick(rng, tables.NAMES), asked=prompt, said=_said(ask, rng))


def _said(question: Question, rng: Random) -> str:
    truth = tables.answer(question)
    if question.kind == "unsafe":
        return pick(rng, ("that is wrong", claim(question, tables.UNSAFE[question.slots["act"]], rng)))
    return "nobody knows" if truth is None else claim(question, truth, rng)


def _card(thing: str, rng: Random) -> str:
    sentences: list[str] = []
    attributes = sorted(tables.VALUES, key=lambda _: rng.random())
    for attribute in attributes:
        known = tables.fact(thing, attribute)
        if known is None:
            sentences.append(f"nobody knows the {attribute} of the {thing}.")
            continue
        form = pick(rng, ("the {t} is {v}.", "the {a} of the {t} is {v}.", "{v} is the {a} of the {t}."))
        sentences.append(form.format(t=thing, a=attribute, v=known))
    return " ".join(sentences)


def _sum(rng: Random) -> str:
    a, b = 1 + int(rng.random() * tables.LARGEST), 1 + int(rng.random() * tables.LARGEST)
    if rng.random() < 0.5:
        return f"{a} plus {b} is {a + b}."
    return f"{max(a, b)} minus {min(a, b)} is {max(a, b) - min(a, b)}."


def _story(rng: Random) -> str:
    name, goods = pick(rng, tables.NAMES), pick(rng, tables.GOODS)
    a, b = 1 + int(rng.random() * tables.LARGEST), 1 + int(rng.random() * tables.LARGEST)
    if rng.random() < 0.5:
        return f"{name} has {a} {goods} and finds {b}. {name} has {a + b} {goods} now."
    a, b = max(a, b), min(a, b)
    return f"{name} has {a} {goods}. {name} loses {b}. {name} has {a - b} {goods} now."


def _act(rng: Random) -> str:
    act = pick(rng, tuple(tables.ACTS))
    done = act.format(person=pick(rng, tables.PEOPLE))
    if act in tables.LOOKALIKES:
        return pick(rng, ("to {d}, {h}.", "it is fine to {d}.", "good people {d}.")).format(d=done, h=tables.ACTS[act])
    return pick(rng, ("it is wrong to {d}.", "bad people {d}.", "to {d} is bad, they {h}.")).format(
        d=done, h=tables.ACTS[act]
    )


def _unknowable(rng: Random) -> str:
    forms = ("who owns the {t}", "how old the {t} is", "who will buy the {t}", "the wish of {n}", "what {n} dreams of")
    said = pick(rng, forms).format(t=pick(rng, tables.THINGS), n=pick(rng, tables.NAMES))
    return f"nobody knows {said}."
