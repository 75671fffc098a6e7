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
    ("github_token", "GitHubTokenDetector", ("ghp_", "gho_", "ghu_", "ghs_", "ghr_")),
    ("gitlab_token", "GitLabTokenDetector", ("gl", "GR1348941")),
    ("jwt", "JwtTokenDetector", ("eyJ",)),
    ("mailchimp", "MailchimpDetector", ("-us",)),
    ("npm", "NpmDetector", (":_authToken",)),
    ("openai", "OpenAIDetector", ("T3BlbkFJ",)),
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
    (r"sk-(?:proj-|svcacct-|ant-)?[A-Za-z0-9_-]{32,}", ("sk-",)),
    (r"hf_[A-Za-z]{34}", ("hf_",)),
    (r"github_pat_[A-Za-z0-9_]{60,}", ("github_pat_",)),
    (r"AIza[A-Za-z0-9_-]{35}", ("AIza",)),
    (r"GOCSPX-[A-Za-z0-9_-]{28}", ("GOCSPX-",)),
    (r"xapp-\d-[A-Z0-9]+-\d+-[a-f0-9]{32,}", ("xapp-",)),
    (
        r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY[A-Z ]*-----(?s:.{1,20000}?)-----END [A-Z0-9 ]*PRIVATE KEY[A-Z ]*-----",
        ("PRIVATE KEY",),
    ),
)
"""Forms that detect-secrets lacks: OpenAI's newer keys, Anthropic, Hugging Face, Google, Slack; whole key blocks."""
REST = re.compile(r"[A-Za-z0-9_+/=-]*(?:\.[A-Za-z0-9_+/=-]+)*")


def secrets(text: str) -> Iterator[Span]:
    """Each with all characters of its token; what says EXAMPLE, as published ones do, or repeats a few is none."""
    for pattern, strings, group in _patterns():
        if not any(string in text for string in strings):
            continue
        for match in pattern.finditer(text):
            start, end = match.span(group)
            before = text[start - 1 : start]
            if group == 0:
                if before.isalnum() or before == "_":
                    continue
                rest = REST.match(text, end)
                end = rest.end() if rest else end
            value = text[start:end]
            if "EXAMPLE" not in value and (group or len(set(value)) > 9):
                yield start, end


@cache
def _patterns() -> tuple[tuple[re.Pattern[str], tuple[str, ...], int], ...]:
    """(pattern, strings, the group that is the secret); those of detect-secrets are its own, not copies."""
    found: list[tuple[re.Pattern[str], tuple[str, ...], int]] = []
    for module, name, strings in DETECTORS:
        for pattern in getattr(optional(f"detect_secrets.plugins.{module}"), name).denylist:
            inner = module in ("basic_auth", "npm") or "aws" in pattern.pattern
            found.append((pattern, strings, int(inner)))
    return (*found, *((re.compile(pattern), strings, 0) for pattern, strings in EXTRA))
