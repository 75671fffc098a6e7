"""Numbers that an authority or a bank gives a person, known by their checksums. Does not know what becomes of them."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from alignkit.data.personal.optional import optional

Span = tuple[int, int]
CARD = re.compile(
    r"(?<![A-Za-z0-9_.,/-])(?<!\d )(?:\d{4}([ -]?)\d{4}\1\d{4}\1\d{4}(?:\1?\d{1,3})?|\d{4}([ -]?)\d{6}\2\d{4,5})"
    r"(?![A-Za-z0-9_-]|\.\d| \d)",
    re.ASCII,
)
ISSUERS = re.compile(
    r"4\d{15}|4\d{18}|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}"
    r"|3(?:0[0-5]|[689]\d)\d{11}|6(?:011|5\d\d|4[4-9]\d|759|76[1-3])\d{12}|35(?:2[89]|[3-8]\d)\d{12}|62\d{14,17}"
)
"""Visa, Mastercard (two ranges), American Express, Diners, Discover, Maestro, JCB, UnionPay: prefix and length."""
TEST_CARDS = {
    "4": ("4111111111111111", "4242424242424242", "4012888888881881", "4000056655665556"),
    "5": ("5555555555554444", "5105105105105100", "5200828282828210"),
    "2": ("2223003122003222", "2223000048400011"),
    "3": (
        "378282246310005",
        "371449635398431",
        "30569309025904",
        "38520000023237",
        "3530111333300000",
        "3566002020360505",
    ),
    "6": ("6011111111111117", "6011000990139424", "6011981111111113", "6200000000000005", "6205500000000000004"),
}
"""Numbers that payment processors publish for tests, by their first digit."""
PUBLISHED = frozenset(card for cards in TEST_CARDS.values() for card in cards)

IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}(?![a-z0-9])", re.ASCII)


class Scheme(NamedTuple):
    """How a country writes its numbers."""

    form: str
    """A pattern, tried at word boundaries."""
    check: str | None
    """The module of python-stdnum that decides; None where the number carries no checksum."""
    words: str | None = None
    """A pattern that must stand within 40 characters before; None where form and checksum are proof enough."""


SSN, TAX = (
    r"ssn|social security|\bss ?#|\bss number|\bitin\b|taxpayer",
    r"steuer|idnr|identifikationsnummer|tax id|\btin\b",
)
SCHEMES: tuple[Scheme, ...] = (
    Scheme(r"\d{3}-\d{2}-\d{4}", "us.ssn"),
    Scheme(r"\d{3} ?\d{2} ?\d{4}", "us.ssn", SSN),
    Scheme(r"9\d{2}-\d{2}-\d{4}", "us.itin"),
    Scheme(r"9\d{2} ?\d{2} ?\d{4}", "us.itin", SSN),
    Scheme(r"\d{3}[ -]?\d{3}[ -]?\d{3}", "ca.sin", r"\bsin\b|social insurance|assurance sociale|\bnas\b"),
    Scheme(r"\d{2} ?\d{3} ?\d{3} ?\d{3}", "de.idnr", TAX),
    Scheme(r"[12378] ?\d{2} ?(?:0[1-9]|1[0-2]|[2-4]\d|[5-9]\d) ?(?:\d{2}|2[AB]) ?\d{3} ?\d{3}[ -]?\d{2}", "fr.nir"),
    Scheme(r"\d{8}-?[A-HJ-NP-TV-Z]", "es.dni", r"\bdni\b|\bnif\b|documento|identidad"),
    Scheme(r"[XYZ]-?\d{7}-?[A-HJ-NP-TV-Z]", "es.nie"),
    Scheme(r"(?i:[A-Z]{6}\d{2}[A-EHLMPR-T]\d{2}[A-Z]\d{3}[A-Z])", "it.codicefiscale"),
    Scheme(r"\d{3}[. ]?\d{2}[. ]?\d{3,4}", "nl.bsn", r"\bbsn\b|burgerservicenummer|sofi"),
    Scheme(r"(?!BG|GB|KN|NK|NT|TN|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d{2} ?\d{2} ?\d{2} ?[A-D]", None),
    Scheme(r"\d{3}[ -]?\d{3}[ -]?\d{4}", "gb.nhs", r"\bnhs\b|national health"),
    Scheme(r"[2-9]\d{3}[ -]?\d{4}[ -]?\d{4}", "in_.aadhaar", r"aa?dhaa?r|\buid(?:ai)?\b"),
    Scheme(r"[A-Z]{3}P[A-Z]\d{4}[A-Z]", "in_.pan"),
    Scheme(r"\d{3}\.\d{3}\.\d{3}-\d{2}", "br.cpf"),
    Scheme(r"\d{11}", "br.cpf", r"\bcpf\b"),
    Scheme(r"\d{17}[\dX]", "cn.ric"),
    Scheme(r"\d{6}[-+]\d{4}|(?:19|20)\d{6}-\d{4}", "se.personnummer"),
    Scheme(r"(?:\d{2})?\d{10}", "se.personnummer", r"personnummer|personal (?:identity )?number"),
    Scheme(r"\d{6}-[1-8]\d{6}", "kr.rrn"),
    Scheme(r"\d{11}", "pl.pesel", r"\bpesel"),
    Scheme(r"756\.\d{4}\.\d{4}\.\d{2}", "ch.ssn"),
    Scheme(r"\d{2}\.\d{2}\.\d{2}-\d{3}\.\d{2}", "be.nn"),
    Scheme(r"\d{6}-?\d{4}", "dk.cpr", r"\bcpr\b|personnummer"),
    Scheme(r"\d{6}[-+A-FU-Y]\d{3}[0-9A-FHJ-NPR-Y]", "fi.hetu"),
    Scheme(r"\d{6} ?\d{5}", "no.fodselsnummer", r"f[øo]dselsnummer|personnummer"),
    Scheme(r"[A-Z]{4}\d{6}[HMX][A-Z]{5}[A-Z\d]\d", "mx.curp"),
    Scheme(r"\d{6} ?\d{4} ?\d{3}", "za.idnr", r"\bid\b|identity|south africa"),
    Scheme(r"\d{3} ?\d{3} ?\d{3}", "au.tfn", r"\btfn\b|tax file"),
)
ENOUGH_DIGITS = re.compile(r"[0-9](?:(?:[^\n0-9]{0,2}[0-9]){5}|(?<=[A-Z]P[A-Z][0-9])[0-9]{3}[A-Z])")
"""What every one of these forms holds: a cheap test before the others."""
FORMS = tuple(
    (re.compile(rf"(?<![A-Za-z0-9_.-])(?:{scheme.form})(?![A-Za-z0-9_-]|\.\d)", re.ASCII), scheme)
    for scheme in SCHEMES
)


def credit_cards(text: str) -> Iterator[Span]:
    """Numbers of an issuer's prefix and length whose Luhn digit is right, without those published for tests."""
    for match in CARD.finditer(text):
        digits = re.sub(r"\D", "", match[0])
        if ISSUERS.fullmatch(digits) and digits not in PUBLISHED and optional("stdnum.luhn").is_valid(digits):
            yield match.span()


def ibans(text: str) -> Iterator[Span]:
    """Account numbers whose check digits and length are those of their country (ISO 13616)."""
    for match in IBAN.finditer(text):
        value = match[0]
        while len(value) > 14:
            if optional("stdnum.iban").is_valid(value, check_country=False):
                yield match.start(), match.start() + len(value)
                break
            value = value[:-1].rstrip() if " " not in value else value.rpartition(" ")[0]


def national_ids(text: str) -> Iterator[Span]:
    """Identity, tax and social security numbers of 22 countries; bare digits only beside a word that names them."""
    if not ENOUGH_DIGITS.search(text):
        return
    for form, scheme in FORMS:
        for match in form.finditer(text):
            before = text[max(0, match.start() - 40) : match.start()]
            if scheme.words is not None and not re.search(scheme.words, before, re.IGNORECASE):
                continue
            if scheme.check is None or _checks(scheme.check, match[0].replace(" ", "")):
                yield match.span()


def _checks(module: str, number: str) -> bool:
    try:
        return optional(f"stdnum.{module}").is_valid(number)
    except (KeyError, IndexError, ValueError):  # of python-stdnum itself, as cn.ric's for a place without a county
        return False
