"""E-mail addresses, telephone numbers and IP addresses in a text. Does not know what becomes of them."""

import re
from collections.abc import Iterator
from functools import cache
from ipaddress import ip_address

from alignkit.data.personal.optional import optional

Span = tuple[int, int]
LATIN = "A-Za-z0-9\u00c0-\u024f"
EMAIL = re.compile(
    rf"(?<![{LATIN}.@_%+-])(?<!//)[{LATIN}_%+-](?:[{LATIN}._%+'-]{{0,62}}[{LATIN}_%+-])?"
    rf"@((?:[{LATIN}](?:[{LATIN}-]{{0,61}}[{LATIN}])?\.)+[A-Za-z]{{2,24}})(?![{LATIN}@-]|\.[{LATIN}])"
)
VEILED = re.compile(
    rf"(?i)[{LATIN}][{LATIN}._+-]{{0,63}} ?[\[(]at[\])] ?"
    rf"((?:[{LATIN}-]{{1,63}}(?:\.| ?[\[(]dot[\])] ?)){{1,4}}[A-Za-z]{{2,24}})(?![{LATIN}@-])"
)
"""name [at] domain [dot] org."""
LOGIN = re.compile(r"://[^\s/@]*:$")
"""What stands before a password and the host of an address, which is no e-mail."""
RESERVED = re.compile(r"(?i)(?:^|\.)(?:example(?:\.(?:com|net|org))?|test|invalid|localhost|local)$")
"""Domains that nobody can own: RFC 2606 and RFC 6762."""

DIGIT_RUN = re.compile(
    r"[0-9](?<![A-Za-z0-9_.,/=#$€£¥-][0-9])(?:[ \u00a0.()/\u2010-\u2015-]{0,3}[0-9]){6,18}(?![A-Za-z0-9_%])"
)
SEPARATED = re.compile(r"[0-9][-.)\u2010-\u2015]")
PLUS = re.compile(r"(?<![\w)=.])\(?\+\(?[0-9]|\(?00[1-9]")
CALL = re.compile(
    r"(?i)\b(?:tele)?(?:phones?|fon|tel|call(?:s|ed|ing)?|mobile|cell|fax|whats ?app|sms|texte?d?|dial|ring|ph|"
    r"contact|hotline|reach|number is)\b[^\n]{0,25}$"
)
NAMED = re.compile(
    r"(?i)(?:\b(?:(?:(?:tele)?phone|mobile|cell(?:phone)?|fax|whats ?app|landline|contact)"
    r"(?: (?:number|no\.?|nr\.?|#))?(?: is)?|tfno|tel[eé]fono?|t[eé]l[eé]phone|telefone?|tel|handy|celular)"
    r"|(?:电话|手机|電話|телефон)(?:号码)?[是为]?)[ \t]*[:.=-]{0,2}[ \t]*[(]?$"
)
"""Words right after which a number is a telephone's, of whatever country."""
NUMBERED = re.compile(
    r"(?i)\b(?:order|invoice|serial|part|item|case|ticket|ref|reference|isbn|account|customer|tracking|sku|model|id)\b"
    r"[ #:.\w]{0,8}$"
)
"""Words right after which a number is not a telephone's, for all its separators."""
FICTIONAL = re.compile(r"^1?\d{3}55501\d\d$")
"""The digits of 555-0100 to 555-0199 in any area, which the North American plan keeps for fiction."""

V4 = re.compile(r"[0-9](?<![A-Za-z0-9_.-][0-9])[0-9]{0,2}(?:\.[0-9]{1,3}){3}(?![A-Za-z0-9_-]|\.[0-9])")
V6 = re.compile(r"[23](?<![\w:.][23])[0-9A-Fa-f]{3}:[0-9A-Fa-f:]{3,35}(?:\d{1,3}(?:\.\d{1,3}){3})?(?![\w:])")
VERSION = re.compile(
    r"(?i)(?:\b(?:version|ver|v|release|build|section|sec|chapter|clause|figure|table|firmware|driver|kernel|software|"
    r"update|updated|upgrade|upgraded|patch|package|oid|sdk|runtime|windows|android|ios)|§)[\s.:#=-]*([^\n]{0,25})$"
)
"""Words before what only looks like an address; group 1: what stands between them, empty where nothing does."""
HOST = re.compile(r"(?i)\b(?:ip|ipv4|address|addr|host|server|dns|ping|gateway|client|peer|router)\b[^\n]{0,25}$")
RESOLVERS = {"8.8.8.8", "8.8.4.4", "1.1.1.1", "1.0.0.1", "9.9.9.9"}
"""Public name servers that texts name as everyone's."""


def emails(text: str) -> Iterator[Span]:
    """Addresses whose domain ends in a top-level domain that exists, and not in a reserved one."""
    for match in VEILED.finditer(text) if "at]" in text or "at)" in text else ():
        if _can_be_owned(re.sub(r" ?[\[(]dot[\])] ?", ".", match[1].lower())):
            yield match.span()
    for match in EMAIL.finditer(text) if "@" in text else ():
        domain, end = match[1], match.end()
        remote = match[0].startswith("git@") and text[match.end() : match.end() + 1] == ":"
        if remote or LOGIN.search(text, max(0, match.start() - 80), match.start()):
            continue
        rest, _, last = domain.rpartition(".")
        if last[0].isupper() and last.lower() not in _top_level_domains() and "." in rest:
            domain, end = rest, end - len(last) - 1
        if _can_be_owned(domain.lower()):
            yield match.start(), end


def telephones(text: str, region: str | None) -> Iterator[Span]:
    """Numbers that libphonenumber holds valid: international ones, and those of the region as written there.

    A national number must have the separators and groups of one, or follow a word that says what it is.
    """
    for run in DIGIT_RUN.finditer(text):
        shift = max(0, run.start() - 2)
        if len(re.findall("[0-9]+", run[0])) > 7:
            continue
        before = text[max(0, run.start() - 40) : run.start()]
        valid = list(_valid_telephones(text[shift : run.end() + 12], region, before))
        yield from ((shift + start, shift + end) for start, end in valid)
        if not valid and NAMED.search(before) and not FICTIONAL.match(re.sub(r"\D", "", run[0])):
            yield run.start() - (")" in run[0] and text[run.start() - 1] == "("), run.end()


def _valid_telephones(window: str, region: str | None, before: str) -> Iterator[Span]:
    library = optional("phonenumbers")
    announced, numbered = CALL.search(before), NUMBERED.search(before)
    strict: set[Span] | None = None
    for found in library.PhoneNumberMatcher(window, region, library.Leniency.VALID):
        start, end = found.start, found.end
        written = window[start:end]
        if FICTIONAL.match(re.sub(r"\D", "", written)):
            continue
        if not PLUS.match(window, start) and not announced:
            if strict is None:
                matcher = library.PhoneNumberMatcher(window, region, library.Leniency.STRICT_GROUPING)
                strict = {(other.start, other.end) for other in matcher}
            if "+" in written or (start, end) not in strict or not SEPARATED.search(written) or numbered:
                continue
        yield start + (written.startswith("(") and ")" not in written), end


def ip_addresses(text: str) -> Iterator[Span]:
    """Addresses that are routed on the internet; none of private networks, documentation, or public name servers."""
    for match in V4.finditer(text):
        small = max(map(int, match[0].split("."))) < 64
        before = text[max(0, match.start() - 40) : match.start()]
        version = VERSION.search(before)
        unlikely = small or version
        if match[0] in RESOLVERS or (version and not version[1]) or (unlikely and not HOST.search(before)):
            continue
        if _is_public(match[0]):
            yield match.span()
    for match in V6.finditer(text):
        if _is_public(match[0]):
            yield match.span()


def _can_be_owned(domain: str) -> bool:
    return domain.rpartition(".")[2] in _top_level_domains() and not RESERVED.search(domain)


def _is_public(address: str) -> bool:
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    return parsed.is_global and not parsed.is_multicast


@cache
def _top_level_domains() -> frozenset[str]:
    """All that exist, by the snapshot of the public suffix list that tldextract carries; nothing is fetched."""
    suffixes = optional("tldextract").TLDExtract(suffix_list_urls=(), cache_dir=None).tlds
    return frozenset(suffix for suffix in suffixes if "." not in suffix)
