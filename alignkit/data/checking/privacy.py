"""Personal data that is left in the texts. Does not know how it is found."""

from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec

from alignkit.data.checking.finding import MOST_SAMPLES, Finding, Sample, fine, of
from alignkit.data.checking.items import Item
from alignkit.data.checking.mending import PERSONAL
from alignkit.data.personal import Finding as Found
from alignkit.data.personal import find_personal, mask_personal
from alignkit.data.texts import texts_of
from alignkit.options.corpus import PersonalOptions

AROUND = 40
"""Characters on each side that a sample shows of what stands around personal data."""

REGION = PersonalOptions().region
"""Whose telephone numbers are found without their country code, as by `alignkit data clean` unless told otherwise."""

NEEDED = ("detect_secrets", "phonenumbers", "stdnum", "tldextract")
"""Packages of alignkit[data]."""


class Personal:
    """Constant memory. Finds what `alignkit data clean` does unless told otherwise."""

    def __init__(self) -> None:
        self._found = Counter[str]()
        self._records = self._holders = 0
        self._samples: dict[str, list[Sample]] = {}

    def add(self, item: Item) -> None:
        self._records += 1
        kinds: set[str] = set()
        for text in texts_of(item.record):
            found = find_personal(text, region=REGION)
            for one in found:
                self._found[one.kind] += 1
                samples = self._samples.setdefault(one.kind, [])
                if one.kind not in kinds and len(samples) < MOST_SAMPLES:
                    samples.append(Sample(item.place, (around(text, one, found),)))
                kinds.add(one.kind)
        self._holders += bool(kinds)

    def findings(self) -> list[Finding]:
        numbers = {"records": self._holders, "of": self._records, "kinds": dict(self._found)}
        if not self._holders:
            return [
                fine("personal_data", f"no record of {self._records:,} holds personal data that is found", **numbers)
            ]
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in self._found.most_common())
        measured = f"{of(self._holders, self._records, 'records')} hold personal data: {kinds}"
        effect = (
            "A model can learn it by heart and tell it to anybody. Names and addresses of people are not looked for."
        )
        first = [samples[0] for samples in self._samples.values()]
        rest = [sample for samples in self._samples.values() for sample in samples[1:]]
        samples = tuple([*first, *rest][: max(MOST_SAMPLES, len(first))])
        severity = "problem" if "secret" in self._found else "warning"
        return [Finding("personal_data", severity, measured, effect, PERSONAL, numbers, samples)]


def can_look() -> bool:
    """Whether the packages are installed that the search needs."""
    return all(find_spec(name) for name in NEEDED)


def not_looked() -> Finding:
    """Said where they are not."""
    effect = "Nothing is known of it, and the samples show it as it is."
    return Finding("personal_data", "note", "personal data was not looked for", effect, "pip install 'alignkit[data]'")


def masked(text: str) -> str:
    """The text with a mark in place of all personal data."""
    return mask_personal(text, region=REGION, marks=True)[0]


def around(text: str, one: Found, all_found: Sequence[Found]) -> str:
    """What stands around a finding, with marks in place of it and of others."""
    low, high = max(0, one.start - AROUND), one.end + AROUND
    parts: list[str] = []
    for kind, start, end in all_found:
        if end > low and start < high:
            parts += [text[low:start], f"[{kind.upper()}]"]
            low = end
    return "".join([*parts, text[low:high]])
