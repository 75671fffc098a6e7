"""What a response looks like without being understood: how it begins and how it is written. Knows no label."""

import re

from reward_models.refusal import refuses

WORDS = ("first word", "first three words")
"""Features with any number of values."""
STYLES = (
    "list", "markdown", "code", "refusal", "apology", "exclamation mark", "question at the end", "no end mark",
)  # fmt: skip
"""Features that are there or not."""
_WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")
_LIST = re.compile(r"^[ \t]*(?:[-*•]|\d+[.)])[ \t]", re.MULTILINE)
_MARKDOWN = re.compile(r"\*\*\S|^#{1,6} |^```|`[^`\n]+`|^\|.*\|[ \t]*$", re.MULTILINE)
_CODE = re.compile(
    r"^```|^[ \t]*(?:def \w+\(|class \w+[:({]|import \w+|from \w[\w.]* import |#include\b|function \w*\(|"
    r"(?:const|let|var) \w+ =)",
    re.MULTILINE,
)
_APOLOGY = re.compile(r"\b(?:sorry|apolog(?:y|ies|i[sz]e)|forgive me)\b", re.IGNORECASE)
_CLOSED = (".", "!", "?", "…", "。", "！", "？", "।", "```")


def beginnings(text: str) -> tuple[str, str]:
    """A value for each of WORDS; punctuation counts as a word."""
    words = [found.group().casefold() for found, _ in zip(_WORD.finditer(text[:200]), range(3), strict=False)]
    return " ".join(words[:1]), " ".join(words)


def styles(text: str) -> int:
    """The features of STYLES that a text has, one bit each, the first the lowest."""
    end = text.rstrip().rstrip("\"'”’)*_")
    found = (
        _LIST.search(text),
        _MARKDOWN.search(text),
        _CODE.search(text),
        refuses(text[:1000]),
        _APOLOGY.search(text),
        "!" in text,
        end.endswith(("?", "？")),
        not end.endswith(_CLOSED),
    )
    return sum(bool(one) << bit for bit, one in enumerate(found))
