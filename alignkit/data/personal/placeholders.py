"""What stands for personal data in a masked text: of its type, and nobody's. Does not know how data is found.

E-mail: example.com (RFC 2606). Telephone: 555-0100 to 555-0199. IP: the ranges for documentation (RFC 5737, RFC 3849).
Card: the issuer's published test numbers. Social security: area 000, never issued. IBAN: check digits 00, which none
has. Other identifiers: zeros and a count that fails the check. Secret: the same beginning, then EXAMPLE and a count.
"""

import re
from collections.abc import Callable, Iterator

from alignkit.data.personal.numbers import TEST_CARDS

AREAS = ("202", "212", "303", "312", "404", "415", "503", "602", "702", "808")
MOST = 10_000
"""Different placeholders of a kind whose range is not smaller."""


def placeholders(kind: str, value: str) -> Iterator[str]:
    """The placeholders that may stand for a value of this kind, best first; finitely many."""
    return MAKERS[kind](value)


def _email(value: str) -> Iterator[str]:
    yield from (f"user{number}@example.com" for number in range(1, MOST))


def _telephone(value: str) -> Iterator[str]:
    form = (
        "+1 {}-555-{:04}"
        if value.lstrip("(").startswith(("+", "00"))
        else "({}) 555-{:04}"
        if "(" in value
        else "{}-555-{:04}"
    )
    yield from (form.format(area, number) for area in AREAS for number in range(100, 200))


def _ip(value: str) -> Iterator[str]:
    if ":" in value:
        yield from (f"2001:db8::{number:x}" for number in range(1, MOST))
    else:
        nets = ("192.0.2", "198.51.100", "203.0.113")
        yield from (f"{net}.{number}" for net in nets for number in range(1, 255))


def _card(value: str) -> Iterator[str]:
    digits = re.sub(r"\D", "", value)
    cards = TEST_CARDS[digits[0]]
    for card in sorted(cards, key=lambda card: len(card) != len(digits)):
        yield _refilled(value, card) if len(card) == len(digits) else card


def _iban(value: str) -> Iterator[str]:
    letters = len(re.sub(r"\s", "", value))
    yield from (_refilled(value, f"{value[:2]}00{number:0{letters - 4}}") for number in range(1, MOST))


def _national_id(value: str) -> Iterator[str]:
    """Digits become zeros and a count, letters X; the shape stays."""
    places = sum(char.isdigit() for char in value)
    for number in range(1, MOST):
        digits = iter(f"{number:0{places}}"[-places:])
        yield "".join(next(digits) if char.isdigit() else "X" if char.isalpha() else char for char in value)


def _secret(value: str) -> Iterator[str]:
    if value.startswith("-----BEGIN"):
        lines = value.splitlines()
        yield from (f"{lines[0]}\nEXAMPLE{number:057}\n{lines[-1]}" for number in range(1, MOST))
        return
    beginning = re.match(
        r"https://[^/]+/services/|[A-Za-z]{2,10}[_-](?:(?:live|proj|ant|pat)[_-])?|A[A-Z0-9]{3}(?=[A-Z0-9]{16}$)|eyJ|SG\.",
        value,
    )
    start = beginning[0] if beginning else ""
    for number in range(1, MOST):
        yield f"{start}EXAMPLE{number:0{max(4, len(value) - len(start) - 7)}}"


def _refilled(shape: str, characters: str) -> str:
    """The characters in place of the shape's letters and digits; its separators stay."""
    left = iter(characters)
    return "".join(next(left) if char.isalnum() else char for char in shape)


MAKERS: dict[str, Callable[[str], Iterator[str]]] = {
    "secret": _secret,
    "email": _email,
    "iban": _iban,
    "credit_card": _card,
    "national_id": _national_id,
    "ip_address": _ip,
    "telephone": _telephone,
}
