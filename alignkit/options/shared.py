"""Option groups that several stages share. Knows no stage, no model and no torch: it is read before all of them."""

from importlib.util import find_spec
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import AfterValidator, Field, model_validator

from alignkit.config import Config

LearningRate: TypeAlias = Annotated[float, Field(gt=0.0)]
Momentum: TypeAlias = Annotated[float, Field(ge=0.0, lt=1.0)]


class LoraOptions(Config):
    """Low-rank adapters (Hu et al. 2021, https://arxiv.org/abs/2106.09685)."""

    r: int = Field(default=16, ge=1)
    """Rank of the update."""
    alpha: float | None = Field(default=None, gt=0.0)
    """Scale: the update is multiplied by alpha / r. Left out: 2 r."""
    target_modules: Literal["all-linear"] | list[str] = "all-linear"
    """The modules that get an adapter: "all-linear", or the ends of their names."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Dropout on the adapter's input. Above 0, results depend on how a batch is split."""

    @property
    def scale(self) -> float:
        """alpha, or its default 2 r."""
        return 2.0 * self.r if self.alpha is None else self.alpha


class ModelOptions(Config):
    """The model a stage starts from, and how it is held."""

    path: str
    """A folder, a hub name, or "@stage": the artifact of an earlier stage of this recipe."""
    chat_template: str | None = None
    """The template in place of the checkpoint's own: "chatml", "none" (plain text), or a path to a .jinja file. An
    artifact of alignkit keeps the one it was trained with."""
    eos_token: str | None = None
    """The token that ends an answer, where the template prints none (needed with chat_template: none)."""
    lora: LoraOptions | None = None
    """Train low-rank adapters instead of all weights. `lora: {}` takes the defaults."""
    load_in_4bit: bool = False
    """Hold the frozen base weights in 4-bit NF4 (needs lora)."""
    adapter: Literal["merge", "continue"] = "merge"
    """An incoming LoRA artifact: merge it into its base first, or train that adapter on."""
    template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the chat template, such as {enable_thinking: false}."""
    on_unrendered: Literal["error", "warn"] = "error"
    """What happens where the template leaves a part of a message out; `warn` says so and counts it."""

    @model_validator(mode="after")
    def _check_adapter(self) -> Self:
        if self.adapter == "continue" and self.lora is not None:
            raise ValueError("model.adapter: continue trains the incoming adapter on; remove model.lora, or use merge")
        if self.load_in_4bit and self.lora is None and self.adapter != "continue":
            raise ValueError("load_in_4bit needs lora: 4-bit weights are frozen. Add `lora: {}`, or drop load_in_4bit")
        return self

    def check_frozen(self) -> None:
        """Raise ValueError for an option that only a stage that trains heeds."""
        for name in ("lora", "load_in_4bit", "adapter"):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"model.{name} is for stages that train; remove it")


class DataOptions(Config):
    """Where a stage's records come from: exactly one of `path` and `world`."""

    path: str | None = None
    """A file or folder of records, in any format alignkit reads, or "@stage": what a sample or critique stage
    wrote."""
    world: Literal["corpus", "demonstrations", "comparisons", "prompts", "feedback"] | None = None
    """Generate records of the built-in teaching world instead of reading a file."""
    rows: int | None = Field(default=None, ge=1)
    """Use this many records: the first after a seeded shuffle, or the number generated."""
    format: str = "auto"
    """The file's format; "auto" recognises it."""
    split: str | None = None
    """The part of a folder, or of the world ("train", "heldout")."""
    validation: float | int = Field(default=0.02, ge=0)
    """Held out for validation: a share below 1, or a number of records. 0: none."""
    max_length: int = Field(default=1024, ge=1)
    """The longest sequence, in tokens."""
    over_long: Literal["error", "skip", "truncate_prompt_left", "truncate_answer"] = "error"
    """What happens to longer ones, to a ranking as a whole, to a conversation turn by turn; what is skipped or cut is
    counted."""
    on_invalid: Literal["error", "skip"] = "error"
    """What happens to a record that cannot be read; those skipped are counted."""

    @property
    def mixed(self) -> bool:
        """Whether the records come from several sources, which `path` and `world` are not."""
        return False

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if (self.path is None) == (self.world is None) and not self.mixed:
            mixture = ", `sources` (a mixture)" if "sources" in type(self).model_fields else ""
            raise ValueError(f"give exactly one of `path` (a file){mixture} and `world` (the built-in generator)")
        if self.world is not None and self.rows is None:
            raise ValueError("`world` needs `rows`: how many records to generate")
        return self


class TrainOptions(Config):
    """The optimiser (AdamW) and its schedule."""

    learning_rate: LearningRate
    """The peak learning rate."""
    batch_size: int = Field(default=32, ge=1)
    """Examples in one optimizer step, over all processes. Memory is the business of runtime.token_budget."""
    epochs: float = Field(default=1.0, gt=0.0)
    """Passes over the training records."""
    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps; overrides epochs."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """The learning rate after the warm-up: down along a line or a half cosine, or constant."""
    min_learning_rate: float = Field(default=0.0, ge=0.0)
    """Where that line or half cosine ends."""
    warmup: float = Field(default=0.03, ge=0.0, lt=1.0)
    """Share of the steps over which the learning rate rises from 0."""
    weight_decay: float = Field(default=0.0, ge=0.0)
    """Decoupled weight decay, on matrices only."""
    betas: tuple[Momentum, Momentum] = (0.9, 0.999)
    """Decay of AdamW's two moments."""
    eps: float = Field(default=1e-8, gt=0.0)
    """AdamW's epsilon."""
    max_grad_norm: float = Field(default=1.0, gt=0.0)
    """Gradients are scaled down to this norm over the whole model."""
    evaluate_every: int | None = Field(default=None, ge=1)
    """Steps between validations. Left out: five times a run."""
    patience: int | None = Field(default=None, ge=1)
    """Stop early after this many validations without improvement. Left out: never."""
    checkpoint_every: int | None = Field(default=None, ge=1)
    """Steps between checkpoints. Left out: at each validation."""
    keep_checkpoints: int = Field(default=1, ge=1)
    """How many checkpoints are kept."""

    @model_validator(mode="after")
    def _check_rates(self) -> Self:
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"min_learning_rate {self.min_learning_rate:g} is above learning_rate {self.learning_rate:g}, the peak"
            )
        if self.min_learning_rate and self.schedule == "constant":
            raise ValueError("min_learning_rate has no meaning with schedule: constant; remove it")
        return self


def check_patience(data: DataOptions, train: TrainOptions) -> None:
    """Raises ValueError where `patience` could stop nothing. For a stage's validator, which knows both groups."""
    if train.patience is not None and data.validation == 0:
        raise ValueError("train.patience counts validations, and data.validation is 0; hold records out, or remove it")


def undivided(options: DataOptions) -> DataOptions:
    """The options with nothing held out."""
    return options.model_copy(update={"validation": 0})


AllData: TypeAlias = Annotated[DataOptions, AfterValidator(undivided)]
"""Data of which nothing is held out: `validation` has no meaning."""


class AnsweringConfig(Config):
    """What the stages share in which a frozen policy answers prompts and data is written."""

    data: AllData
    """The prompts: all of them, `validation` has no meaning here. data.max_length bounds the whole conversation;
    prompts without room for it are an error, or with `over_long: skip` left out."""
    unfinished: Literal["drop", "keep"] = "drop"
    """Answers that were cut off: left out, or kept with `finished` false, so that training on them leaves out the
    end-of-turn token that they lack."""
    max_new_tokens: int = Field(default=64, ge=1)
    """The longest answer, in tokens, its end token included."""
    temperature: float = Field(default=1.0, ge=0.0)
    """Of sampling; 0 is greedy."""
    seed: int = 0
    """Set from the recipe."""

    @model_validator(mode="after")
    def _check_data(self) -> Self:
        if self.data.over_long.startswith("truncate"):
            raise ValueError(f"data.over_long: {self.data.over_long} is not offered for prompts; use skip")
        return self


class RuntimeOptions(Config):
    """How a stage is executed. Nothing here enters the id of a run."""

    token_budget: int = Field(default=8192, ge=1)
    """Tokens in one forward pass: memory and speed only, results do not depend on it."""
    processes: int = Field(default=1, ge=1)
    """Processes (devices) that share one stage."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run; "auto" takes the accelerator where there is one."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """Precision of the forward pass; "auto" is float32 on a CPU and bf16 autocast on an accelerator."""
    rollout_url: str = "http://localhost:8000"
    """Where the server of a stage with rollouts.engine: vllm listens; VLLM_API_KEY is sent as its key if it is set."""
    trackers: list[str] = Field(default_factory=lambda: ["tensorboard"])
    """Trackers that accelerate knows by name, such as tensorboard or wandb; []: metrics.jsonl only."""
    log_every: int = Field(default=1, ge=1)
    """Steps between lines of metrics.jsonl."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third slower."""
    allow_code: bool = False
    """Let the recipe name Python functions as rewards, tools and environments (set by --allow-code, never by it)."""


def check_installed(option: str, package: str | None) -> None:
    """Raise ValueError where an option needs a package, of those in alignkit[eval], that is not installed."""
    if package is not None and find_spec(package) is None:
        raise ValueError(f'{option} needs the package {package}; run pip install "alignkit[eval]"')
