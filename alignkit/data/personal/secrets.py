"""Keys, tokens and passwords that give access, in a text. Does not know what becomes of them."""

import re
from collections.abc import Iterator
from functools import cache

from alignkit.data.personal.optional import optional

Span = tuple[int, int]
DETECTORS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("aws", "AWSKeyDetector", ("AKIA", "ASIA", "ABIA", "ACCA", "A3T", "aws", "AWS")),
    ("azure_storage_key", "AzureStorageKeyDetector", ("AccountKey=",)),
    ("basic_auth", "BasicAuthDetector", ("://",)),
    ("discord", "DiscordBotTokenDetector", (".",)),
    ("github_token", "GitHubTokenDetector", ("ghp_", "gho_", "ghu_", "ghs_", "ghr_")),
    (
        "gitlab_token",
        "GitLabTokenDetector",
        (
            "glpat-",
            "gldt-",
            "glft-",
            "glsoat-",
            "glrt-",
            "glcbt-",
            "glimt-",
            "glptt-",
            "glagent-",
            "gloas-",
            "GR1348941",
        ),
    ),
    ("jwt", "JwtTokenDetector", ("eyJ",)),
    ("mailchimp", "MailchimpDetector", ("-us",)),
    ("pypi_token", "PypiTokenDetector", ("pypi-",)),
    ("sendgrid", "SendGridDetector", ("SG.",)),
    ("slack", "SlackDetector", ("xox", "XOX", "hooks.slack.com")),
    ("square_oauth", "SquareOAuthDetector", ("sq0csp-",)),
    ("stripe", "StripeDetector", ("k_live_",)),
    ("telegram_token", "TelegramBotTokenDetector", (":AA",)),
    ("twilio", "TwilioKeyDetector", ("AC", "SK")),
)
"""detect-secrets' modules and classes, each with the strings of which one must be in the text."""

EXTRA: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"(?<!-)sk-(?=[\w-]*[0-9])(?=[\w-]*[A-Z])[A-Za-z0-9_-]{32,}", ("sk-",)),
    (r"hf_[A-Za-z]{34}", ("hf_",)),
    (r"shp(?:at|ca|pa|ss)_[A-Fa-f0-9]{32}", ("shpat_", "shpca_", "shppa_", "shpss_")),
    (r"dop_v1_[a-f0-9]{64}", ("dop_v1_",)),
    (r"github_pat_[A-Za-z0-9_]{60,}", ("github_pat_",)),
    (r"AIza[A-Za-z0-9_-]{35}", ("AIza",)),
    (r"GOCSPX-[A-Za-z0-9_-]{28}", ("GOCSPX-",)),
    (r"xapp-\d-[A-Z0-9]+-\d+-[a-f0-9]{32,}", ("xapp-",)),
)
"""Forms that detect-secrets lacks: newer keys of OpenAI and Slack; Anthropic, Hugging Face, Shopify, Google, …"""
ASSIGNED: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        r"(?i)(?:api|secret|access|auth|private)[_-]?(?:access[_-]?)?(?:key|token)[\"']?\s{0,3}[:=]\s{0,3}[\"']?"
        r"((?=[\w/+-]*[0-9])(?=[\w/+-]*[a-z])[\w/+-]{20,}={0,2})",
        ("key", "KEY", "Key", "token", "TOKEN", "Token"),
    ),
    (r":_authToken=\s*(npm_\w{20,}|[A-Fa-f0-9-]{36})", (":_authToken",)),
    (r"://:([^\s@/:]{6,})@", ("://:",)),
)
"""Values of variables named for what they hold, and passwords in an address without a user: group 1."""
NOMINAL = re.compile(r"(?i)[<${\[*]|(?:your|my)[_-]|(?:pass(?:word|wd)?|pwd|pw|secret|token|x+)$")
"""What stands where a password should, and is none."""
KEY_BLOCK = re.compile(
    r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY[A-Z ]*-----(?:[^-]|-(?!----))+-----END [A-Z0-9 ]*PRIVATE KEY[A-Z ]*-----"
)
LONG = re.compile(r"[!-~]{20}")
"""What every secret and address with one contains: no space for 20 characters."""
REST = re.compile(r"[A-Za-z0-9_+/=-]*(?:\.[A-Za-z0-9_+/=-]+)*")


def secrets(text: str) -> Iterator[Span]:
    """Each with all characters of its token; what says EXAMPLE, as published ones do, or repeats a few is none."""
    last = 0
    for token in LONG.finditer(text):
        if token.start() < last:
            continue
        first = text.rfind("\n", 0, token.start()) + 1
        last = text.find("\n", token.end())
        last = len(text) if last < 0 else last
        yield from ((first + start, first + end) for start, end in _in_line(text[first:last]))
    if "PRIVATE KEY" in text:
        yield from (block.span() for block in KEY_BLOCK.finditer(text) if "EXAMPLE" not in block[0])


def _in_line(line: str) -> Iterator[Span]:
    for pattern, strings, group in _patterns():
        if not any(string in line for string in strings):
            continue
        for match in pattern.finditer(line):
            start, end = match.span(group)
            if group == 0:
                start += len("AccountKey=") if match[0].startswith("AccountKey=") else 0
                end = max(end, REST.match(line, end).end())
            value = line[start:end]
            nominal = NOMINAL.match(value) if group else len(set(value)) < 10
            if "EXAMPLE" not in value and not nominal:
                yield start, end


def _at_boundary(pattern: re.Pattern[str]) -> re.Pattern[str]:
    """Tried only where no word goes on, which also keeps long runs of a prefix from costing their square."""
    return re.compile(rf"(?<![A-Za-z0-9_])(?:{pattern.pattern})", pattern.flags)


@cache
def _patterns() -> tuple[tuple[re.Pattern[str], tuple[str, ...], int], ...]:
    """(pattern, strings, the group that is the secret); those of detect-secrets are its own, not copies."""
    found: list[tuple[re.Pattern[str], tuple[str, ...], int]] = []
    for module, name, strings in DETECTORS:
        for pattern in getattr(optional(f"detect_secrets.plugins.{module}"), name).denylist:
            inner = module == "basic_auth" or "aws" in pattern.pattern
            found.append((pattern if inner else _at_boundary(pattern), strings, int(inner)))
    found += [(_at_boundary(re.compile(form)), strings, 0) for form, strings in EXTRA]
    found += [(re.compile(form), strings, 1) for form, strings in ASSIGNED]
    return tuple(found)
