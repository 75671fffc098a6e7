"""Personal data in a text: found, and masked by placeholders of its type. Does not know records or files.

What follows a pattern or carries a checksum is found; names of people, street addresses and dates of birth are not.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import NamedTuple

from alignkit.config import InputError
from alignkit.data.personal.contacts import emails, ip_addresses, telephones
from alignkit.data.personal.numbers import credit_cards, ibans, national_ids
from alignkit.data.personal.optional import optional
from alignkit.data.personal.placeholders import placeholder
from alignkit.data.personal.secrets import secrets

KINDS: tuple[str, ...] = ("secret", "email", "iban", "credit_card", "national_id", "ip_address", "telephone")
"""What can be found, the more certain first: where two findings overlap, the earlier kind wins."""

Spans = Iterable[tuple[int, int]]
IN_TEXT: dict[str, Callable[[str], Spans]] = {"secret": secrets, "email": emails}
NEAR_DIGITS: dict[str, Callable[[str], Spans]] = {
    "iban": ibans,
    "credit_card": credit_cards,
    "national_id": national_ids,
    "ip_address": ip_addresses,
}
DIGITS = re.compile(r"[0-9](?:(?:[^\n0-9]{0,3}[0-9]){3,}|(?<=[23])[0-9A-Fa-f]{3}:[0-9A-Fa-f]{0,4}:)")
MARGIN = 60
"""Characters before and after digits that decide what they are."""
ROUNDS = 5
"""How often a text is searched at most: what a finding covered may be one of its own once that is masked."""
TRIES = 100
"""Placeholders that are tried for a value before one that stands for another is used again."""


class Finding(NamedTuple):
    """Personal data in a text: `text[start:end]`, in characters."""

    kind: str
    start: int
    end: int


def find_personal(text: str, kinds: Collection[str] = KINDS, region: str | None = "US") -> list[Finding]:
    """Personal data of these kinds, in the order of the text and never overlapping.

    `region` (ISO 3166, two letters) is the country whose national forms of telephone numbers are found; with None,
    only international ones are. Addresses, numbers and keys that can belong to nobody (example.com, private networks,
    published test cards, AWS's EXAMPLE keys, 555-01xx) are none. Raises InputError for an unknown kind or region.
    """
    if unknown := set(kinds) - set(KINDS):
        raise InputError(f"personal data: {', '.join(sorted(unknown))}: no such kind; choose among {', '.join(KINDS)}")
    if region is not None and "telephone" in kinds and region not in optional("phonenumbers").SUPPORTED_REGIONS:
        raise InputError(f"personal data: region {region!r}: give a country by its two letters, such as US, GB or DE")
    found = [Finding(kind, *span) for kind, finder in IN_TEXT.items() if kind in kinds for span in finder(text)]
    numeric = {kind: finder for kind, finder in NEAR_DIGITS.items() if kind in kinds}
    if "telephone" in kinds:
        numeric["telephone"] = lambda text: telephones(text, region)
    for low, high in _windows(text) if numeric else ():
        window = text[low:high]
        for kind, finder in numeric.items():
            found += [Finding(kind, low + start, low + end) for start, end in finder(window)]
    found.sort(key=lambda finding: (KINDS.index(finding.kind), finding.start - finding.end, finding.start))
    kept: list[Finding] = []
    covered = bytearray(len(text) if found else 0)
    for finding in found:
        if not any(covered[finding.start : finding.end]):
            covered[finding.start : finding.end] = b"1" * (finding.end - finding.start)
            kept.append(finding)
    return sorted(kept, key=lambda finding: finding.start)


def _windows(text: str) -> Iterator[tuple[int, int]]:
    """Where four digits or more stand close together, with what stands around them; merged where they touch."""
    low = high = 0
    for match in DIGITS.finditer(text):
        if match.start() - MARGIN > high:
            if high:
                yield low, high
            low = match.start() - MARGIN
        high = match.end() + MARGIN
    if high:
        yield low, high


def mask_personal(
    text: str,
    kinds: Collection[str] = KINDS,
    region: str | None = "US",
    marks: bool = False,
    given: dict[tuple[str, str], str] | None = None,
) -> tuple[str, Counter[str]]:
    """The text with each finding replaced, and how many of each kind there were.

    A placeholder is of the type that it replaces, so that a model learns no strange mark, and can belong to nobody:
    what `placeholders.py` says of each kind. Equal values get equal ones, different values different ones as long as
    the range reserved for the kind lasts. Nothing is found in a masked text: masking it again changes nothing.

    With `marks`, bare marks such as [EMAIL] instead. `given` holds the placeholders given so far, by kind and value,
    and is added to: one dict for all texts of a record keeps them consistent across its turns.
    """
    given = {} if given is None else given
    counts = Counter[str]()
    for _ in range(ROUNDS):
        text, found = _masked(text, kinds, region, marks, given)
        counts += found
        if not found:
            break
    return text, counts


def _masked(
    text: str, kinds: Collection[str], region: str | None, marks: bool, given: dict[tuple[str, str], str]
) -> tuple[str, Counter[str]]:
    taken, so_far = set(given.values()), Counter(kind for kind, _ in given)
    parts, counts, last = [], Counter[str](), 0
    for kind, start, end in find_personal(text, kinds, region):
        value = text[start:end]
        if marks:
            mask = f"[{kind.upper()}]"
        elif (mask := given.get((kind, value), "")) == "":
            around = text[max(0, start - 40) : start], text[end : end + 40]
            mask = given[kind, value] = _unused(kind, value, so_far[kind], around, taken, region)
            taken.add(mask)
            so_far[kind] += 1
        parts += [text[last:start], mask]
        counts[kind] += 1
        last = end
    return "".join([*parts, text[last:]]), counts


def _unused(kind: str, value: str, first: int, around: tuple[str, str], taken: set[str], region: str | None) -> str:
    """A placeholder that is free and would not be found in its place; else a taken one, else a bare mark."""
    before, after = around
    again = f"[{kind.upper()}]"
    for number in range(first, first + TRIES):
        mask = placeholder(kind, value, number)
        if mask in taken:
            again = mask
            continue
        found = find_personal(before + mask + after, (kind,), region)
        if all(end <= len(before) or start >= len(before + mask) for _, start, end in found):
            return mask
    return again
