"""Options of pretraining: a tokenizer and a model from nothing, or a checkpoint trained on. No model, no torch."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from alignkit.config import Config
from alignkit.options.mixture import StreamedDataOptions
from alignkit.options.shared import LearningRate, ModelOptions, Momentum, TrainOptions, check_patience


class TokenizerOptions(Config):
    """The tokenizer of a new model: trained on the training documents, or taken from a folder."""

    kind: Literal["bpe", "unigram", "word", "character"] = "bpe"
    """`bpe`: byte-level byte-pair encoding, which takes any text; `unigram`: pieces of a language model, likewise;
    `word` and `character`: for teaching."""
    vocabulary: int = Field(default=8192, ge=16)
    """The largest number of tokens, special ones included."""
    path: str | None = None
    """Take the tokenizer of this checkpoint instead of training one."""


class ArchitectureOptions(Config):
    """A new causal model, of any class that transformers knows."""

    model_type: str = "qwen3"
    """The transformers name of the configuration, such as llama, qwen3, gpt_neox or mistral."""
    layers: int = Field(default=6, ge=1)
    """Decoder layers."""
    width: int = Field(default=256, ge=2)
    """Size of the hidden states."""
    heads: int = Field(default=4, ge=1)
    """Attention heads; width is a multiple of it."""
    kv_heads: int | None = Field(default=None, ge=1)
    """Heads of keys and values (grouped-query attention); heads is a multiple of it. Left out: as many as heads."""
    feed_forward: int | None = Field(default=None, ge=1)
    """Inner size of the feed-forward layers. Left out: 4 × width."""
    tied: bool = True
    """Input and output embeddings are one matrix."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """In every place where that class has dropout (GPT-2: embeddings, attention, residual stream; Llama: attention).
    Above 0, results depend on how a batch is split."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Further fields of that configuration class, by their transformers names."""

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}")
        if self.kv_heads is not None and self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is no multiple of kv_heads {self.kv_heads}")
        return self


class PretrainTrain(TrainOptions):
    """The optimiser, with rates for a small model from nothing; continued pretraining wants a tenth or less."""

    learning_rate: LearningRate = 1e-3
    """The peak learning rate."""
    betas: tuple[Momentum, Momentum] = (0.9, 0.95)
    """Decay of AdamW's two moments (Brown et al. 2020, appendix B)."""
    weight_decay: float = Field(default=0.1, ge=0.0)
    """Decoupled weight decay, on matrices only."""


class PretrainConfig(Config):
    """Next-token training on documents: a new model from `architecture`, or the checkpoint in `model` trained on."""

    architecture: ArchitectureOptions | None = None
    """A new model of this shape; its context is data.max_length."""
    tokenizer: TokenizerOptions = TokenizerOptions()
    """The new model's tokenizer."""
    model: ModelOptions | None = None
    """The checkpoint to train on, with its own tokenizer."""
    data: StreamedDataOptions
    """Documents. Those longer than max_length are cut into pieces, and no token of them is lost."""
    train: PretrainTrain = PretrainTrain()
    """The optimiser and its schedule."""
    example: Literal["document", "piece", "crop"] = "document"
    """What train.batch_size counts. `document`: whole documents, with all their pieces; `piece`: pieces of at most
    max_length tokens, cut at the same places in each epoch; `crop`: max_length tokens from a random place of the
    documents one after the other (nanoGPT's batches), which needs train.steps."""
    fim_rate: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of the training documents turned into fill-in-the-middle (Bavarian et al. 2022)."""
    seed: int = 0
    """Set from the recipe."""

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        check_patience(self.data, self.train)
        if (self.architecture is None) == (self.model is None):
            raise ValueError("give exactly one of `architecture` (a new model) and `model` (a checkpoint to train on)")
        if self.model is not None and self.tokenizer != TokenizerOptions():
            raise ValueError("`tokenizer` is for a new model; a checkpoint in `model` brings its own: remove it")
        given = {} if self.model is None else self.model.model_dump(exclude_defaults=True)
        for name in ("chat_template", "eos_token", "template_kwargs", "on_unrendered"):
            if name in given:
                raise ValueError(f"model.{name}: documents have no chat format; set it in the stage that follows")
        if self.model is not None and self.fim_rate and (self.model.lora or self.model.adapter == "continue"):
            name = "lora" if self.model.lora else "adapter: continue"
            raise ValueError(f"fim_rate adds tokens, which adapters leave untrained: remove model.{name} or fim_rate")
        if self.example == "crop" and self.train.steps is None:
            raise ValueError("example: crop has no epochs; set train.steps")
        if self.data.max_length < 2:
            raise ValueError("data.max_length: a sequence needs at least 2 tokens to predict one")
        return self
