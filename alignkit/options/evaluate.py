"""The options of the evaluate stage. Knows no model and no torch."""

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from alignkit.config import Config
from alignkit.options.environment import EnvironmentOptions
from alignkit.options.reward_source import RewardSource
from alignkit.options.shared import AllData, DataOptions, check_installed, undivided

Metric = Literal["accuracy", "precision_recall_f1", "exact_match", "squad", "rouge", "bleu", "chrf"]
NEEDED_PACKAGES: dict[str, str] = {"rouge": "rouge_score", "bleu": "sacrebleu", "chrf": "sacrebleu"}
"""The modules that metrics need beyond alignkit's own requirements, all in alignkit[eval]."""


class EvaluateConfig(Config):
    """Compare models on held-out prompts: rewards, win rates, KL, lengths, perplexity, task metrics, samples."""

    models: list[str] = Field(min_length=1)
    """The models, in the order in which they were made."""
    baseline: str | None = None
    """The one of `models` that win rates are against. Left out: the first."""
    reference: str | None = None
    """The one of `models` that the KL is to. Left out: the baseline."""
    data: AllData
    """The held-out prompts: all of them, `validation` has no meaning here. Prompts that leave no room for
    max_new_tokens within max_length are an error, or with `over_long: skip` left out for all models."""
    reward: RewardSource | None = None
    """What a completion is worth; win rates follow it, or `gold` where that is given."""
    gold: RewardSource | None = None
    """A second reward that no model was trained on, the true one where it is known."""
    metrics: list[Metric] = Field(default_factory=list[Metric])
    """Task metrics: completions against the reference answer in `answer_column`. rouge, bleu and chrf need
    alignkit[eval]."""
    answer_column: str = "answer"
    """The data column with the reference answer, or a list of acceptable ones."""
    positive_label: str | None = None
    """precision_recall_f1: the label they are of. Left out: the plain mean over all labels."""
    texts: DataOptions | None = None
    """Held-out texts for perplexity. Documents are read as far as max_length and the model's positions reach; answers
    of weight 0 are left out, and all others count alike."""
    texts_are: Literal["demonstrations", "documents"] = "demonstrations"
    """Perplexity of the answers in conversations, or of whole documents."""
    chat_template: str | None = None
    """The template of models that have none of their own: "chatml", "none", or a path to a .jinja file."""
    eos_token: str | None = None
    """The token that ends an answer, for models that have no template."""
    template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the template, such as {enable_thinking: false}, for models that no stage has made: those
    are spoken to as they were trained."""
    max_new_tokens: int = Field(default=64, ge=1)
    """The longest completion, in sampled tokens, end tokens included; with an environment over all its turns."""
    environment: EnvironmentOptions | None = None
    """What answers every model between its turns, as in training; null: a completion is one turn."""
    temperature: float = Field(default=1.0, ge=0.0)
    """Of sampling; 0 is greedy, and then there is no estimate of the KL."""
    samples: int = Field(default=1, ge=1)
    """Completions of each prompt."""
    shown: int = Field(default=8, ge=0)
    """Prompts whose completions are shown side by side."""
    bootstrap: int = Field(default=1000, ge=100)
    """Resamples behind each interval; prompts are resampled, with all their completions. At most 200 for
    precision_recall_f1, bleu and chrf, which are computed anew on each."""
    confidence: float = Field(default=0.95, gt=0.0, lt=1.0)
    """Of the intervals."""
    seed: int = 0
    """Set from the recipe."""

    @field_validator("texts")
    @classmethod
    def _all_of_them(cls, options: DataOptions | None) -> DataOptions | None:
        return options and undivided(options)

    @model_validator(mode="after")
    def _check(self) -> Self:
        for key, name in (("baseline", self.baseline), ("reference", self.reference)):
            if name is not None and name not in self.models:
                raise ValueError(f"{key}: {name!r} is not one of models ({', '.join(self.models)})")
        if self.data.over_long.startswith("truncate"):
            raise ValueError(f"data.over_long: {self.data.over_long} is not offered for prompts; use skip")
        if len(set(self.models)) < len(self.models):
            raise ValueError("models: one of them stands there twice")
        self.only_with(
            "precision_recall_f1" in self.metrics, "without the metric precision_recall_f1", "positive_label"
        )
        self.only_with(self.texts is not None, "without texts", "texts_are")
        for metric in self.metrics:
            check_installed(f"metrics: {metric}", NEEDED_PACKAGES.get(metric))
        for name, source in (("reward", self.reward), ("gold", self.gold)):
            if source is not None:
                source.refuse_memory(name)
        return self

    @property
    def baseline_index(self) -> int:
        """The baseline's place in `models`."""
        return 0 if self.baseline is None else self.models.index(self.baseline)

    @property
    def reference_index(self) -> int:
        """The reference's place in `models`."""
        return self.baseline_index if self.reference is None else self.models.index(self.reference)
