"""Options of `alignkit data clean`, `dedup`, `split` and `mix`. Knows no file and no tool that does the work."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from alignkit.config import Config
from alignkit.options.mixture import SourceOptions, check_sources

QualityRules = Literal["gopher", "gopher_repetition", "c4", "fineweb"]


class WorkOptions(Config):
    """Where the work runs. It changes nothing in the result."""

    executor: Literal["local", "slurm", "ray"] = "local"
    """datatrove's executor. On Slurm the jobs are submitted, and the last of them writes the result."""
    workers: int | None = Field(default=None, ge=1)
    """Processes at a time. Left out: as many as there are cores here."""
    shard_megabytes: int = Field(default=16, ge=1)
    """Size of the pieces that a worker takes one at a time, and that a killed run has done or not."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of datatrove's executor, such as {partition: cpu, time: "04:00:00"} on Slurm."""

    @model_validator(mode="after")
    def _check_slurm(self) -> Self:
        missing = [name for name in ("partition", "time") if name not in self.arguments]
        if self.executor == "slurm" and missing:
            raise ValueError(f"executor: slurm needs {' and '.join(missing)} in `arguments` (arguments.time=04:00:00)")
        return self


class LanguageOptions(Config):
    """Which languages are kept, by a fastText model for language identification."""

    model: str
    """The model's file, such as lid.176.bin, which fasttext.cc publishes."""
    keep: list[str] = Field(default_factory=lambda: ["en"], min_length=1)
    """The model's names of the languages to keep."""
    threshold: float = Field(default=0.65, ge=0.0, le=1.0)
    """Least probability of one of them (FineWeb's value)."""


class PersonalOptions(Config):
    """What happens to personal data."""

    action: Literal["mask", "remove", "keep"] = "mask"
    """`mask` replaces each by a placeholder of its type, `remove` removes the record."""
    kinds: list[str] | None = Field(default=None, min_length=1)
    """What is looked for. Left out: everything that is known."""
    region: str | None = "US"
    """The country (two letters) whose telephone numbers are also found without a country code; null: none."""

    @model_validator(mode="after")
    def _check_action(self) -> Self:
        self.only_with(self.action != "keep", "with action: keep", "kinds", "region")
        return self


class CleanOptions(Config):
    """What `alignkit data clean` does, in this order: texts are changed one by one, rules see a record's as one."""

    html: Literal["auto", "always", "never"] = "auto"
    """Keep an HTML page's main text only (trafilatura). `auto`: documents that begin as a page does."""
    unicode: bool = True
    """Repair wrongly decoded text and remove control characters (ftfy)."""
    personal: PersonalOptions = PersonalOptions()
    """Personal data."""
    language: LanguageOptions | None = None
    """Keep some languages only. Left out: all."""
    quality: list[QualityRules] = Field(default_factory=list[QualityRules])
    """Rules for web text: Gopher (Rae et al. 2021), C4 (Raffel et al. 2020), FineWeb (Penedo et al. 2024)."""
    thresholds: dict[QualityRules, dict[str, Any]] = Field(default_factory=dict[QualityRules, dict[str, Any]])
    """Arguments of datatrove's filters in place of their own, by rules: {gopher: {min_doc_words: 20}}."""
    most_removed: float = Field(default=1.0, ge=0.0, le=1.0)
    """Stop, and write nothing, where a larger share of the records would be removed."""
    work: WorkOptions = WorkOptions()
    """Where it runs."""

    @model_validator(mode="after")
    def _check_thresholds(self) -> Self:
        if unused := [name for name in self.thresholds if name not in self.quality]:
            raise ValueError(f"thresholds.{unused[0]} has no meaning: `quality` does not name {unused[0]}")
        return self


class MinhashOptions(Config):
    """Near duplicates by MinHash (Broder 1997) in bands: found with probability 1-(1-s^rows)^bands at similarity s."""

    bands: int = Field(default=14, ge=1)
    """Bands; one equal band makes two texts near duplicates (FineWeb's 14 of 8: 0.92 at similarity 0.8)."""
    rows: int = Field(default=8, ge=1)
    """Hashes of a band."""
    words: int = Field(default=5, ge=1)
    """Words of a shingle. Texts with fewer have no near duplicates, only exact ones."""
    numbers: bool = False
    """Tell numbers apart. Without it texts that differ in numbers alone are equal here, as dated pages should be and
    sums should not."""


class DedupOptions(Config):
    """What `alignkit data dedup` removes, in this order."""

    against: list[str] = Field(default_factory=list[str])
    """Evaluation or test data: what shares a prompt or a run of words with it is removed."""
    overlap_words: int = Field(default=13, ge=2)
    """Words of a run that counts as overlap with `against` (13: Brown et al. 2020)."""
    exact: bool = True
    """Remove records that are equal to an earlier one in all but id, source and columns (by: prompt, in prompts)."""
    minhash: MinhashOptions | None = MinhashOptions()
    """Remove all but one of each group of near duplicates; null keeps them."""
    by: Literal["record", "prompt"] = "record"
    """What is compared: all texts of a record, or its prompt alone, so that each prompt is kept once."""
    most_removed: float = Field(default=1.0, ge=0.0, le=1.0)
    """Stop, and write nothing, where a larger share of the records would be removed."""
    work: WorkOptions = WorkOptions()
    """Where it runs."""

    @model_validator(mode="after")
    def _check_use(self) -> Self:
        self.only_with(bool(self.against), "without `against`", "overlap_words")
        self.only_with(self.exact or self.minhash is not None, "without `exact` and `minhash`", "by")
        return self


class SplitOptions(Config):
    """How `alignkit data split` divides records; all that share a prompt fall on one side."""

    parts: dict[str, float] = Field(
        default_factory=lambda: {"train": 0.98, "validation": 0.01, "test": 0.01}, min_length=2
    )
    """Share of the prompts for each part, by name. They sum to 1."""
    seed: int = 0
    """Draws who falls where. A record's part does not change when others are added."""
    work: WorkOptions = WorkOptions()
    """Where it runs."""

    @model_validator(mode="after")
    def _check_parts(self) -> Self:
        if abs(sum(self.parts.values()) - 1) > 1e-9 or not all(share > 0 for share in self.parts.values()):
            raise ValueError(f"`parts` must be above 0 and sum to 1, and sum to {sum(self.parts.values()):g}")
        if bad := [name for name in self.parts if not name.replace("-", "").replace("_", "").isalnum()]:
            raise ValueError(f"`parts`: {bad[0]!r} becomes a file's name; use letters, digits, - and _")
        return self


class MixOptions(Config):
    """What `alignkit data mix` writes: records of several sources by their shares, in one seeded order."""

    sources: list[SourceOptions] = Field(min_length=1)
    """Each a {path, weight, epochs, name, format, split}."""
    temperature: float = Field(default=1.0, gt=0.0)
    """Without weights, shares are as size^(1/temperature): 1 by size, large all alike."""
    records: int | None = Field(default=None, ge=1)
    """Records to write. Left out: as many as the sources hold."""
    seed: int = Field(default=0, ge=0)
    """Draws which records come once more than others, and the order."""
    work: WorkOptions = WorkOptions()
    """Where it runs."""

    @model_validator(mode="after")
    def _check_sources(self) -> Self:
        check_sources(self.sources)
        self.only_with(self.sources[0].weight is None, "where sources have weights", "temperature")
        return self
