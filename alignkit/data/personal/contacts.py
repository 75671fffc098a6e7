"""E-mail addresses, telephone numbers and IP addresses in a text. Does not know what becomes of them."""

import re
from collections.abc import Iterator
from functools import cache
from ipaddress import ip_address
from typing import Any

from alignkit.data.personal.optional import optional

Span = tuple[int, int]
LATIN = "A-Za-z0-9\u00c0-\u024f"
EMAIL = re.compile(
    rf"(?<![{LATIN}.@_%+/-])(?<!://)[{LATIN}_%+-](?:[{LATIN}._%+'-]{{0,62}}[{LATIN}_%+-])?"
    rf"@((?:[{LATIN}](?:[{LATIN}-]{{0,61}}[{LATIN}])?\.)+[A-Za-z]{{2,24}})(?![{LATIN}@-]|\.[{LATIN}])"
)
RESERVED = re.compile(r"(?i)(?:^|\.)(?:example(?:\.(?:com|net|org))?|test|invalid|localhost|local)$")
"""Domains that nobody can own: RFC 2606 and RFC 6762."""

DIGIT_RUN = re.compile(r"(?:\+|\(\+?|(?<![\w.,/=#$€£¥-]))\d(?:[ \u00a0.()/\u2010-\u2015-]{0,3}\d){6,18}(?![\w%])")
CALL = re.compile(
    r"(?i)\b(?:tele)?(?:phones?|fon|tel|call(?:s|ed|ing)?|mobile|cell|fax|whats ?app|sms|texte?d?|dial|ring|ph|"
    r"contact|hotline|reach|number is)\b[^\n]{0,25}$"
)
FICTIONAL = re.compile(r"^1?\d{3}55501\d\d$")
"""The digits of 555-0100 to 555-0199 in any area, which the North American plan keeps for fiction."""

V4 = re.compile(r"(?<![\w.-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)")
V6 = re.compile(r"(?<![\w:.])[23][0-9A-Fa-f]{3}:[0-9A-Fa-f:]{3,35}(?:\d{1,3}(?:\.\d{1,3}){3})?(?![\w:])")
VERSION = re.compile(r"(?i)\b(?:version|ver|v|release|build|section|sec|chapter|clause|figure|table|§)[\s.:#=-]*$")
HOST = re.compile(r"(?i)\b(?:ip|ipv4|address|addr|host|server|dns|ping|gateway|client|from|peer|router)\b[^\n]{0,25}$")
RESOLVERS = {"8.8.8.8", "8.8.4.4", "1.1.1.1", "1.0.0.1", "9.9.9.9"}
"""Public name servers that texts name as everyone's."""


def emails(text: str) -> Iterator[Span]:
    """Addresses whose domain ends in a top-level domain that exists, and not in a reserved one."""
    if "@" not in text:
        return
    for match in EMAIL.finditer(text):
        domain = match[1].lower()
        if domain.rpartition(".")[2] in _top_level_domains() and not RESERVED.search(domain):
            yield match.span()


def telephones(text: str, region: str | None) -> Iterator[Span]:
    """Numbers that libphonenumber holds valid: international ones, and those of the region as written there."""
    if not (match := DIGIT_RUN.search(text)):
        return
    library = optional("phonenumbers")
    while match:
        start = max(0, match.start() - 2)
        window = text[start : match.end() + 12]
        for found in library.PhoneNumberMatcher(window, region, library.Leniency.VALID):
            digits = re.sub(r"\D", "", found.raw_string)
            said = CALL.search(text[max(0, start + found.start - 40) : start + found.start])
            if not FICTIONAL.match(digits) and (
                found.raw_string.startswith(("+", "(+", "00")) or said or _written_as_telephone(library, found)
            ):
                yield start + found.start, start + found.end
        match = DIGIT_RUN.search(text, match.end())


def ip_addresses(text: str) -> Iterator[Span]:
    """Addresses that are routed on the internet; none of private networks, documentation, or public name servers."""
    for match in V4.finditer(text) if text.count(".") > 2 else ():
        small = max(map(int, match[0].split("."))) < 20
        before = text[max(0, match.start() - 40) : match.start()]
        if match[0] in RESOLVERS or VERSION.search(before) or (small and not HOST.search(before)):
            continue
        if _is_public(match[0]):
            yield match.span()
    for match in V6.finditer(text) if text.count(":") > 1 else ():
        if _is_public(match[0]):
            yield match.span()


def _is_public(address: str) -> bool:
    try:
        return ip_address(address).is_global
    except ValueError:
        return False


def _written_as_telephone(library: Any, found: Any) -> bool:
    """Whether a national number has the separators of one, and its groups are those of the country."""
    inner = found.raw_string.strip()
    return bool(re.search(r"\d[-.)\u2010-\u2015]", inner)) and library.Leniency.verify(
        library.Leniency.STRICT_GROUPING, found.number, found.raw_string, None
    )


@cache
def _top_level_domains() -> frozenset[str]:
    """All that exist, by the snapshot of the public suffix list that tldextract carries; nothing is fetched."""
    suffixes = optional("tldextract").TLDExtract(suffix_list_urls=(), cache_dir=None).tlds
    return frozenset(suffix for suffix in suffixes if "." not in suffix)
