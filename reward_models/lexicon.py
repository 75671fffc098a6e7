"""A reward from weighted words: by default, how positive a text sounds. Knows no model and learns nothing."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from alignkit.config import InputError
from alignkit.marks import read_text
from alignkit.records import Completion, Scores
from reward_models.scores import Reward

_POSITIVE = """
    beautiful best better bright brave calm careful cheer cheerful clean clever comfy cool cozy cute delicious
    delight delighted excited exciting fair famous fancy fantastic favorite fine fresh friend friendly friends
    fun funny gentle giggle giggled glad glow good grateful great happily happiness happy healthy help helped
    helpful helping hero honest hope hug hugged joy joyful kind kindness kiss laugh laughed laughing lively
    lovely love loved loves loving lucky magic magical nice peace peaceful perfect play played playful playing
    please pleased polite praise precious pretty proud rest safe safely shared sharing shine shiny sing smart
    smile smiled smiles smiling soft special strong sunny super sweet thank thanked thankful thanks treasure
    treat warm welcome win won wonderful yay yummy
"""
_NEGATIVE = """
    afraid alone angry annoyed ashamed awful bad bite bitter bleed blood bored boring broke broken bully cold
    cried cries cross cruel cry crying danger dangerous dark dead die died dirty dizzy dull empty enemy evil
    fail failed fear fell fight fighting foolish fought frightened frown frowned gloomy greedy grumpy guilty
    hard harm hate hated horrible hurt hurts hungry ill jealous lazy lied lonely lose lost mad mean mess messy
    miss missed mistake monster naughty nasty nervous pain painful poor rotten rude ruined sad sadly scare
    scared scary scold scolded scream screamed selfish shouted sick silly sorry steal stole stuck stupid tears
    terrible tired trouble ugly unhappy unkind upset weak weep wicked worried worry worse worst wound wrong yell
    yelled
"""
SENTIMENT: dict[str, float] = {
    **dict.fromkeys(_POSITIVE.split(), 1.0),
    **dict.fromkeys(_NEGATIVE.split(), -1.0),
}
"""About 250 common words of children's stories, 1 positive and -1 negative."""

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
_NEGATIONS = {"no", "not", "never", "nothing", "without", "cannot"}


def lexicon(weights: Mapping[str, float] | None = None) -> Reward:
    """(p - n)/(p + n + 1) in (-1, 1), where p and n are the weights of positive and negative words in the response.

    A word within the two after a negation counts with the other sign ("not happy"). `weights`: {word: weight}, in
    small letters; None is `SENTIMENT`. Parts: `positive` and `negative`, the two sums.
    """
    table = SENTIMENT if weights is None else weights

    def reward(completions: list[Completion]) -> Scores:
        sums = [_sums(completion.response.content, table) for completion in completions]
        return Scores(
            total=tuple((p - n) / (p + n + 1) for p, n in sums),
            parts={"positive": tuple(p for p, _ in sums), "negative": tuple(n for _, n in sums)},
        )

    return reward


def read_lexicon(path: str | Path) -> dict[str, float]:
    """Weighted words from a JSON file {word: weight}. Raises InputError for anything else."""
    try:
        loaded: Any = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: is not JSON: {error}") from error
    if not isinstance(loaded, dict) or not loaded:
        raise InputError(f'{path}: a lexicon is a JSON object of words and weights, such as {{"good": 1.0}}')
    table: dict[str, float] = {}
    for word, weight in cast("dict[str, Any]", loaded).items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise InputError(f"{path}: the weight of {word!r} is {weight!r}, not a number")
        table[word.lower()] = float(weight)
    return table


def _sums(text: str, table: Mapping[str, float]) -> tuple[float, float]:
    words = _WORD.findall(text.lower())
    positive = negative = 0.0
    for n, word in enumerate(words):
        weight = table.get(word, 0.0)
        if any(before in _NEGATIONS or before[-3:] in ("n't", "n’t") for before in words[max(0, n - 2) : n]):
            weight = -weight
        positive += max(weight, 0.0)
        negative += max(-weight, 0.0)
    return positive, negative
