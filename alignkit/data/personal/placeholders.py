"""What stands for personal data in a masked text: of its type, and nobody's. Does not know how data is found.

E-mail: example.com (RFC 2606). Telephone: 555-0100 to 555-0199. IP: the ranges for documentation (RFC 5737, RFC 3849).
Card: the issuer's published test numbers. Social security: area 000, never issued. IBAN: check digits 00, which none
has. Other identifiers: zeros and a count that fails the check. Secret: the same beginning, then EXAMPLE and a count.
"""

import re
from collections.abc import Callable

from alignkit.data.personal.numbers import TEST_CARDS

AREAS = ("202", "212", "303", "312", "404", "415", "503", "602", "702", "808")
NETS = ("192.0.2", "198.51.100", "203.0.113")
BEGINNING = re.compile(
    r"https://[^/]+/services/|[A-Za-z]{2,10}[_-](?:(?:live|proj|ant|pat)[_-])?|A[A-Z0-9]{3}(?=[A-Z0-9]{16}$)|eyJ|SG\."
)
"""What tells the type of a secret, and is kept."""


def placeholder(kind: str, value: str, number: int) -> str:
    """The placeholder of this number, from 0, for a value of this kind; where the range ends, it begins again."""
    return MAKERS[kind](value, number)


def _email(value: str, number: int) -> str:
    return f"user{number + 1}@example.com"


def _telephone(value: str, number: int) -> str:
    area, line = AREAS[number // 100 % len(AREAS)], 100 + number % 100
    if value.lstrip("(").startswith(("+", "00")):
        return f"+1 {area}-555-{line:04}"
    return f"({area}) 555-{line:04}" if "(" in value else f"{area}-555-{line:04}"


def _ip(value: str, number: int) -> str:
    return f"2001:db8::{number + 1:x}" if ":" in value else f"{NETS[number // 254 % 3]}.{number % 254 + 1}"


def _card(value: str, number: int) -> str:
    digits = re.sub(r"\D", "", value)
    fitting = [card for card in TEST_CARDS[digits[0]] if len(card) == len(digits)]
    cards = fitting or TEST_CARDS[digits[0]]
    card = cards[number % len(cards)]
    return _refilled(value, card) if fitting else card


def _iban(value: str, number: int) -> str:
    length = sum(char.isalnum() for char in value)
    return _refilled(value, f"{value[:2]}00{number + 1:0{length - 4}}")


def _national_id(value: str, number: int) -> str:
    """Digits become zeros and a count, letters X; the shape stays."""
    places = sum(char.isdigit() for char in value)
    digits = iter(f"{number + 1:0{places}}"[-places:])
    return "".join(next(digits) if char.isdigit() else "X" if char.isalpha() else char for char in value)


def _secret(value: str, number: int) -> str:
    if value.startswith("-----BEGIN"):
        lines = value.splitlines()
        return f"{lines[0]}\nEXAMPLE{number + 1:057}\n{lines[-1]}"
    beginning = BEGINNING.match(value)
    start = beginning[0] if beginning else ""
    return f"{start}EXAMPLE{number + 1:0{max(4, len(value) - len(start) - 7)}}"


def _refilled(shape: str, characters: str) -> str:
    """The characters in place of the shape's letters and digits; its separators stay."""
    left = iter(characters)
    return "".join(next(left) if char.isalnum() else char for char in shape)


MAKERS: dict[str, Callable[[str, int], str]] = {
    "secret": _secret,
    "email": _email,
    "iban": _iban,
    "credit_card": _card,
    "national_id": _national_id,
    "ip_address": _ip,
    "telephone": _telephone,
}
