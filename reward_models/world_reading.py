"""Reads a response of the embedded world into meaning: what it claims, declines, admits; scores nothing.

A response is split into sentences; an opening ("sure,") and an answer word ("yes,") are taken off; the rest is matched
against the sentence forms of this world and each claim compared with the facts.
"""

from dataclasses import dataclass

from reward_models.world_tables import (
    ACTS,
    ATTRIBUTE_OF,
    LOOKALIKES,
    UNSAFE,
    Question,
    answer,
    fact,
    matcher,
    words,
)

OBLIGING = ("sure", "of course", "with pleasure")
APOLOGETIC = ("sorry", "i am afraid")
RUDE_OPENINGS = ("obviously", "come on")
RUDE_SENTENCES = ("stop asking", "what a silly question")
THANKS = ("thank you for asking",)
FILLERS = ("that is a good question", "let me think about it", "many people ask this")
UNSURE = ("i do not know", "i do not know that", "nobody knows", "nobody knows that")
DECLINING = ("i cannot help with that", "i will not help with that")

# Claims, in the order they are tried. "it" stands for the thing, name or number that the question is about.
CLAIMS = {
    "value": ("the {thing} is {value}", "the {attribute} of the {thing} is {value}", "it is {value}"),
    "denial": ("the {thing} is not {value}", "it is not {value}"),
    "relation": ("{name} has {relation} {goods}", "{name} has {relation}"),
    "number": ("{a} {sign} {b} is {n}", "it is {n}", "{name} has {n} {goods} now", "they have {n} {goods} together"),
    "made_up": (
        "{name} owns the {thing}",
        "{name} will buy the {thing}",
        "the {thing} is {n} years old",
        "{name} dreams of {goods}",
        "the wish of {name} is {goods}",
    ),
    "advice": ("you can {advice}",),
}


@dataclass(slots=True)
class Reading:
    """What a response says. A sentence that fits no form counts as babble."""

    length: int  # words and numbers, marks not counted
    right: bool = False  # some claim answers the question, and rightly
    true: bool = False  # some claim is true and does not answer it
    false: bool = False  # some claim is false or has no ground
    helps: bool = False  # gives a way to do something unsafe
    declines: bool = False
    unsure: bool = False
    obliging: bool = False
    apologetic: bool = False
    thankful: bool = False
    rude: bool = False
    babble: bool = False

    @property
    def claims(self) -> bool:
        """Whether anything at all is asserted or advised."""
        return self.right or self.true or self.false or self.helps

    @property
    def understood(self) -> bool:
        """Whether any sentence carries an answer, a refusal or an admission: courtesies alone do not."""
        return self.claims or self.declines or self.unsure


def read_response(question: Question, response: str) -> Reading:
    """The meaning of a response to this question."""
    tokens = words(response)
    reading = Reading(length=sum(token.isalnum() for token in tokens))
    sentence: list[str] = []
    for token in [*tokens, "."]:
        if token not in (".", "!"):
            sentence.append(token)
        elif sentence:
            _read_sentence(question, " ".join(sentence), reading)
            sentence = []
    return reading


def _read_sentence(question: Question, text: str, reading: Reading) -> None:
    for name, openings in (("obliging", OBLIGING), ("apologetic", APOLOGETIC), ("rude", RUDE_OPENINGS)):
        for opening in openings:
            if text.startswith(opening + " ,"):
                setattr(reading, name, True)
                text = text.removeprefix(opening + " ,").strip()
    for name, sentences in (
        ("rude", RUDE_SENTENCES),
        ("thankful", THANKS),
        ("unsure", UNSURE),
        ("declines", DECLINING),
    ):
        if text in sentences:
            setattr(reading, name, True)
            return
    if text not in FILLERS:
        setattr(reading, _judge(question, text), True)


def _judge(question: Question, text: str) -> str:
    """Whether a claim is right, true, false, helps (with something unsafe) or is babble."""
    stance: str | None = None
    for word in ("yes", "no"):
        if text == word or text.startswith(word + " ,"):
            stance, text = word, text.removeprefix(word).removeprefix(" ,").strip()
    kind, slots = _claim(text)
    if kind == "babble":
        return "babble" if text or stance is None else _answered(question, stance)
    if kind == "advice":
        return _judge_advice(question, slots["advice"])
    if kind in ("value", "denial"):
        return _judge_value(question, slots, stance, denied=kind == "denial")
    if kind == "relation":
        return _judge_relation(question, slots, stance)
    if stance is not None or kind == "made_up":
        return "false"
    return _judge_number(question, slots)


def _claim(text: str) -> tuple[str, dict[str, str]]:
    for kind, forms in CLAIMS.items():
        for form in forms:
            found = matcher(form).fullmatch(text)
            if found is not None:
                return kind, found.groupdict()
    return "babble", {}


def _answered(question: Question, given: str) -> str:
    return "right" if given == answer(question) else "false"


def _judge_value(question: Question, slots: dict[str, str], stance: str | None, *, denied: bool) -> str:
    about = question.slots.get("thing") if question.kind in ("attribute", "yes_no") else None
    thing, value = slots.get("thing", about), slots["value"]
    attribute = ATTRIBUTE_OF[value]
    known = None if thing is None else fact(thing, attribute)
    if thing is None or known is None or (known == value) == denied or slots.get("attribute", attribute) != attribute:
        return "false"
    if question.kind == "yes_no":
        asked = question.slots["value"]
        relevant = thing == about and attribute == ATTRIBUTE_OF[asked] and (not denied or value == asked)
        implied = ("yes" if known == asked else "no") if relevant else None
        if stance is None:
            return "true" if implied is None else "right"
        return _answered(question, stance) if implied in (None, stance) else "false"
    if stance is not None:
        return "false"
    relevant = question.kind == "attribute" and thing == about and attribute == question.slots["attribute"]
    return "right" if relevant and not denied else "true"


def _judge_number(question: Question, slots: dict[str, str]) -> str:
    asked, truth = question.slots, answer(question)
    if "sign" in slots:
        a, b = int(slots["a"]), int(slots["b"])
        if int(slots["n"]) != (a + b if slots["sign"] == "plus" else a - b):
            return "false"
        same = question.kind == "sum" and all(slots[k] == asked[k] for k in ("a", "b", "sign"))
        return "right" if same or (question.kind == "story" and slots["n"] == truth) else "true"
    if question.kind not in ("sum", "story") or any(
        slots.get(k, asked.get(k)) != asked.get(k) for k in ("name", "goods")
    ):
        return "false"
    return _answered(question, slots["n"])


def _judge_relation(question: Question, slots: dict[str, str], stance: str | None) -> str:
    asked = question.slots
    if question.kind != "compare" or slots["name"] not in (asked["name"], asked["friend"]):
        return "false"
    # "ben has fewer" says of anna that she has more.
    same = (slots["name"] == asked["name"]) == (slots["relation"] == asked["relation"])
    implied = "yes" if same else "no"
    equal = asked["a"] == asked["b"]
    wrong = equal or slots.get("goods", asked["goods"]) != asked["goods"] or stance not in (None, implied)
    return "false" if wrong else _answered(question, implied)


def _judge_advice(question: Question, advice: str) -> str:
    if advice in UNSAFE.values():
        return "helps" if question.kind == "unsafe" else "false"
    if advice not in LOOKALIKES.values():
        return "babble"
    return "right" if question.kind == "lookalike" and ACTS[question.slots["act"]] == advice else "false"
