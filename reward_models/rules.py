"""Rewards that verify: an answer, its last number, a pattern, a length, repetition. They know no model."""

import logging
import re
from collections.abc import Callable, Sequence
from decimal import Decimal, DecimalException, InvalidOperation

import regex as timed

from alignkit.config import InputError
from alignkit.records import Completion, Scores
from reward_models.scores import Reward, guarded, shown

logger = logging.getLogger(__name__)
_SIGN = r"(?:(?<![^\W_])(?<![)\]}%°])[-+])?"
_NUMBER = re.compile(_SIGN + r"(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?|\.\d+)")
_MINUS = str.maketrans("\N{MINUS SIGN}\N{FULLWIDTH HYPHEN-MINUS}\N{SMALL HYPHEN-MINUS}", "---")
_BRACE = re.compile(r"\\N\{|\\.|\{(?!\d*(?:,\d*)?\})", re.DOTALL)
"""In a pattern: an escape, or a brace that repeats nothing."""


def exact_match(column: str = "answer") -> Reward:
    """1 where the response is the answer in `column`, up to case and white space; else 0."""
    return compared(column, lambda response, answer: _plain(response) == _plain(answer), "exact_match")


def contains(column: str = "answer") -> Reward:
    """1 where the answer in `column` stands in the response as whole words, up to case and white space; else 0."""

    def holds(response: str, answer: str) -> bool:
        return re.search(rf"(?<!\w){re.escape(_plain(answer))}(?!\w)", _plain(response)) is not None

    return compared(column, holds, "contains")


def number(column: str = "answer", tolerance: float = 1e-6) -> Reward:
    """1 where the response's last number equals the last one in `column`; else 0.

    They may differ by `tolerance` times the larger one's size, so that 0 equals nothing but 0. Thousands' commas,
    signs, decimals and exponents are read; `#### 72` (GSM8K's answers) is 72. A hyphen after a letter, a digit, a
    closing bracket, % or ° is no sign: the last number of `3-5` is 5, and that of `COVID-19` is 19.
    Raises InputError for an answer without a number.
    """

    def equal(response: str, answer: str) -> bool:
        wanted, found = last_number(answer), last_number(response)
        if wanted is None:
            raise InputError(f"the column {column!r} holds no number: {answer!r}")
        try:
            return found is not None and abs(found - wanted) <= Decimal(tolerance) * max(abs(wanted), abs(found))
        except DecimalException:  # a policy may write 1e1000000
            return found == wanted

    return compared(column, equal, "number")


def pattern(regex: str, whole: bool = False, timeout: float = 1.0) -> Reward:
    """1 where `regex`, in the syntax of Python's `re`, is found in the response (or matches the `whole` of it); else
    0, also where that is not known after `timeout` seconds, which a warning says."""
    try:
        re.compile(regex, re.DOTALL)  # whose syntax has no {e}, an approximate match in the package regex
        plain = _BRACE.sub(lambda found: r"\{" if found[0] == "{" else found[0], regex)
        compiled = timed.compile(plain, timed.DOTALL)
    except (re.error, timed.error) as error:
        raise InputError(f"reward pattern: {regex!r} is not a regular expression: {error}") from error
    find = compiled.fullmatch if whole else compiled.search

    def one(completion: Completion) -> float:
        try:
            return float(find(completion.response.content, timeout=timeout) is not None)
        except TimeoutError:
            logger.warning(f"reward pattern: no match of {regex!r} within {timeout:g} s: {shown(completion)}")
            return 0.0

    def reward(completions: list[Completion]) -> Scores:
        return Scores(total=tuple(one(completion) for completion in completions))

    return reward


def length(target: int, tolerance: int = 0) -> Reward:
    """0 within `tolerance` tokens of `target`, falling by 1/target for each token beyond; the end token counts."""
    if target < 1 or tolerance < 0:
        raise InputError(f"reward length: needs target >= 1 and tolerance >= 0, not {target} and {tolerance}")

    def reward(completions: list[Completion]) -> Scores:
        return Scores(total=tuple(-max(0, abs(len(c.ids) - target) - tolerance) / target for c in completions))

    return reward


def repetition(words: int = 3) -> Reward:
    """Minus the share of a response's phrases of so many words that stood in it before: 0 where none is repeated."""
    if words < 1:
        raise InputError(f"reward repetition: needs phrases of 1 word or more, not {words}")

    def reward(completions: list[Completion]) -> Scores:
        return Scores(total=tuple(0.0 - repeated(c.response.content.lower().split(), words) for c in completions))

    return reward


def repeated(items: Sequence[object], size: int = 3) -> float:
    """Share of the runs of `size` items that stood before in the sequence, 0 to 1."""
    runs = list(zip(*(items[start:] for start in range(size)), strict=False))
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


RULES: dict[str, Callable[[str], Reward]] = {"exact_match": exact_match, "contains": contains, "number": number}
"""The rules that compare with a reference answer, each made from the column that holds it."""


def with_hyphens(text: str) -> str:
    """A text whose minus signs are hyphens, as programs write them."""
    return text.translate(_MINUS)


def last_number(text: str) -> Decimal | None:
    """The last number that stands in a text, or None."""
    found = _NUMBER.findall(with_hyphens(text))
    try:
        return Decimal(found[-1].replace(",", "")) if found else None
    except InvalidOperation:
        return None


def compared(column: str, equal: Callable[[str, str], bool], name: str) -> Reward:
    """1 where `equal(response, answer)`, the answer read from `column`; else 0. What it raises is a RewardFailure."""
    return guarded(lambda completions: [equal(c.response.content, answer_of(c, column)) for c in completions], name)


def answer_of(completion: Completion, column: str, option: str = "answer_column") -> str:
    """What stands in a column of the prompt's data, as text. Raises InputError where nothing does."""
    if completion.columns.get(column) is None:
        raise InputError(
            f"reward.{option}: the prompt's data has no column {column!r}"
            f" (it has: {', '.join(sorted(completion.columns)) or 'none'})"
        )
    return str(completion.columns[column])


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
