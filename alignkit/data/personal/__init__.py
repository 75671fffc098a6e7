"""Personal data in a text: found, and masked by placeholders of its type. Does not know records or files.

What follows a pattern or carries a checksum is found; names of people, street addresses and dates of birth are not.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

from alignkit.config import InputError
from alignkit.data.personal.contacts import emails, ip_addresses, telephones
from alignkit.data.personal.numbers import credit_cards, ibans, national_ids
from alignkit.data.personal.placeholders import placeholders
from alignkit.data.personal.secrets import secrets

KINDS: tuple[str, ...] = ("secret", "email", "iban", "credit_card", "national_id", "ip_address", "telephone")
"""What can be found, the more certain first: where two findings overlap, the earlier kind wins."""

Spans = Iterable[tuple[int, int]]
FINDERS: dict[str, Callable[[str], Spans]] = {
    "secret": secrets,
    "email": emails,
    "iban": ibans,
    "credit_card": credit_cards,
    "national_id": national_ids,
    "ip_address": ip_addresses,
}


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
    kept: list[Finding] = []
    for kind in KINDS:
        if kind in kinds:
            spans = telephones(text, region) if kind == "telephone" else FINDERS[kind](text)
            for start, end in sorted(spans, key=lambda span: span[0] - span[1]):
                if all(end <= other.start or other.end <= start for other in kept):
                    kept.append(Finding(kind, start, end))
    return sorted(kept, key=lambda finding: finding.start)


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
    parts, counts, last = [], Counter[str](), 0
    for kind, start, end in find_personal(text, kinds, region):
        value = text[start:end]
        if marks:
            mask = f"[{kind.upper()}]"
        elif (mask := given.get((kind, value), "")) == "":
            around = text[max(0, start - 40) : start], text[end : end + 40]
            mask = given[kind, value] = _unused(kind, value, around, set(given.values()), region)
        parts += [text[last:start], mask]
        counts[kind] += 1
        last = end
    return "".join([*parts, text[last:]]), counts


def _unused(kind: str, value: str, around: tuple[str, str], taken: set[str], region: str | None) -> str:
    """The first placeholder that is free and would not be found in its place; else a taken one, else a bare mark."""
    before, after = around
    again = f"[{kind.upper()}]"
    for mask in placeholders(kind, value):
        found = find_personal(before + mask + after, (kind,), region)
        if all(end <= len(before) or start >= len(before + mask) for _, start, end in found):
            if mask not in taken:
                return mask
            again = mask
    return again
