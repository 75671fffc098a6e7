"""What a check has to say: findings, and samples of the rows they are about. Does not know what is measured."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Severity = Literal["problem", "warning", "note", "fine"]
SEVERITIES: tuple[Severity, ...] = ("problem", "warning", "note", "fine")
"""From the worst: it spoils what is trained; it may; it is worth knowing; it was measured and is in order."""
NAMES = (
    "rejected_rows", "duplicates", "duplicate_prompts", "personal_data",
    "empty_answers", "one_word_answers", "identical_responses",
    "position_balance", "ties", "tied_scores", "scores_against_ranks", "label_balance",
    "length_bias_characters", "length_bias_tokens", "contradictions", "artefacts",
    "token_contract", "untrained", "over_long", "control_text", "unknown_tokens",
    "shared_prompts", "overlap", "contradictions_against",
)  # fmt: skip
"""Of all findings that there can be."""
MOST_SAMPLES = 3
"""Samples of one finding."""
EXCERPT = 90
"""Characters that a sample shows of each of its texts."""
KEPT = 4000
"""Characters of each end of a text that are kept until they are masked and cut."""


@dataclass(frozen=True)
class Sample:
    """A row that a finding is about."""

    place: str
    """file:line."""
    texts: tuple[str, ...]
    """What it says: the prompt and the answers, or a reason."""


@dataclass(frozen=True)
class Finding:
    """One thing that was measured."""

    name: str
    """By which `--ignore` knows it, one of NAMES."""
    severity: Severity
    measured: str
    """The numbers, in a sentence."""
    effect: str = ""
    """What it does to training."""
    mend: str = ""
    """The command or option that mends it."""
    numbers: dict[str, Any] = field(default_factory=dict)
    """The numbers for a program; low and high are the ends of intervals."""
    samples: tuple[Sample, ...] = ()
    details: tuple[str, ...] = ()
    """More numbers, a line each."""
    records: tuple[int, ...] = ()
    """Numbers of records, from 0, that are to be shown as samples and are looked up at the end."""


def fine(name: str, measured: str, **numbers: Any) -> Finding:
    """A finding that all is in order."""
    return Finding(name, "fine", measured, numbers=numbers)


def by_severity(findings: Iterable[Finding]) -> list[Finding]:
    """The worst first, else in their order."""
    return sorted(findings, key=lambda one: SEVERITIES.index(one.severity))


def percent(share: float) -> str:
    """0.0312 as "3.1 %"."""
    return f"{100 * share:.1f} %"


def of(count: int, total: int, what: str) -> str:
    """ "3 of 60 records (5.0 %)"."""
    return f"{count:,} of {total:,} {what}" + (f" ({percent(count / total)})" if total else "")


def shown(finding: Finding, found: dict[int, Sample], mask: Callable[[str], str]) -> Finding:
    """The finding with its records looked up, and every sample masked and cut to what is shown."""
    samples = (*finding.samples, *(found[number] for number in finding.records if number in found))
    cut_ones = (Sample(one.place, tuple(cut(mask(text)) for text in one.texts)) for one in samples)
    return replace(finding, samples=tuple(cut_ones), records=())


def ends(text: str) -> str:
    """The text without its middle where it is very long: what a sample keeps of it."""
    return text if len(text) <= 2 * KEPT else f"{text[:KEPT]} … {text[-KEPT:]}"


def cut(text: str) -> str:
    """The text on one line, its beginning and its end where it is long."""
    line = re.sub(r"\s+", " ", text).strip()
    return line if len(line) <= EXCERPT else f"{line[: EXCERPT * 2 // 3]} … {line[-(EXCERPT // 3) :]}"
