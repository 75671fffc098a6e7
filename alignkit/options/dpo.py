"""Options of direct preference optimisation. Knows no model and no torch."""

from typing import Literal, Self, get_args

from pydantic import Field, model_validator

from alignkit.config import Config
from alignkit.options.mixture import StreamedDataOptions
from alignkit.options.shared import LearningRate, ModelOptions, TrainOptions, check_patience

LossName = Literal[
    "sigmoid", "sigmoid_norm", "hinge", "ipo", "robust", "exo", "nca", "bco", "sppo", "apo_zero", "apo_down",
    "discopop", "aot", "aot_unpaired", "plackett_luce", "cpo", "simpo", "orpo",
]  # fmt: skip
WITHOUT_REFERENCE = ("cpo", "simpo", "orpo")
SMOOTHED = ("sigmoid", "sigmoid_norm", "robust", "exo", "aot", "aot_unpaired", "cpo", "simpo")
TRANSPORTS = ("aot", "aot_unpaired")
SUMS_OVER_PAIRS = tuple(name for name in get_args(LossName) if name not in (*TRANSPORTS, "plackett_luce"))
OF_DIFFERENCES = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "robust", "exo", "discopop", "plackett_luce")


class DpoTrain(TrainOptions):
    """The optimiser, with a rate for full fine-tuning; LoRA wants about ten times as much."""

    learning_rate: LearningRate = 5e-7
    """The peak learning rate."""
    warmup: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of the steps over which the learning rate rises from 0."""


class MovingReferenceOptions(Config):
    """A reference that follows the policy (TR-DPO, Gorbatovski et al. 2024, arXiv:2404.09656), read at each step."""

    every: int = Field(default=512, ge=1)
    """τ: optimizer steps from one move of the reference to the next."""
    mix: float = Field(default=0.6, gt=0.0, le=1.0)
    """α: a move makes the reference α·policy + (1-α)·reference, weight by weight; 1 makes it the policy. With LoRA it
    must be 1: a mean of adapters is not the mean of the weights."""


class DpoConfig(Config):
    """Preference optimisation without a reward model (Rafailov et al. 2023); the reference is the incoming model."""

    model: ModelOptions
    """The model to start from, usually @sft."""
    data: StreamedDataOptions
    """Comparisons: all untied pairs of a ranking are trained on, each ranking weighing 1."""
    train: DpoTrain = DpoTrain()
    """The optimiser and its schedule."""
    loss: LossName = "sigmoid"
    """A loss of docs/algorithms.md. plackett_luce takes whole rankings; cpo, simpo and orpo need no reference."""
    mixture: dict[LossName, float] = Field(default_factory=dict[LossName, float])
    """Several losses with their weights instead of `loss`, such as {sigmoid: 0.8, bco: 0.2} (MPO)."""
    beta: float = Field(default=0.1, gt=0.0)
    """Strength of the pull towards the reference, in units of reward per nat; the factor λ of orpo."""
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=0.5)
    """Rate at which labels are taken to be flipped: conservative DPO with sigmoid, needed by robust and exo. In a
    mixture it is for those of its losses that know one."""
    margin: float = Field(default=0.0, ge=0.0)
    """simpo's γ: by how much a chosen response is to win, in units of reward."""
    divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"] = "reverse_kl"
    """What holds the policy to its reference (f-DPO, Wang et al. 2023)."""
    divergence_alpha: float = 0.5
    """The α of divergence: alpha, not 1."""
    tail_weight: float = Field(default=1.0, ge=0.0, le=1.0)
    """LD-DPO's α (Liu et al. 2024): the weight of a response's tokens beyond the length of the other one's."""
    weighting: Literal["none", "wpo"] = "none"
    """wpo: a pair weighs as much as the policy would have written both responses (Zhou et al. 2024, Eq. 2)."""
    nll_coef: float = Field(default=0.0, ge=0.0)
    """Factor on the best responses' negative log-likelihood per token, against falling likelihoods."""
    moving_reference: MovingReferenceOptions | None = None
    """Have the reference follow the policy; validation and metrics are against where it stands. Left out: it stays."""
    seed: int = 0
    """Set from the recipe."""

    @property
    def losses(self) -> dict[LossName, float]:
        """Each loss with its weight."""
        return self.mixture or {self.loss: 1.0}

    @property
    def has_reference(self) -> bool:
        """Whether the losses compare the policy with its reference; all of them do, or none."""
        return not set(self.losses) & set(WITHOUT_REFERENCE)

    @property
    def starts_at_ln2(self) -> bool:
        """Whether the loss is ln 2 while the policy is its reference, whatever the data."""
        return self.losses == {"sigmoid": 1.0} and self.weighting == "none"

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_patience(self.data, self.train)
        names = list(self.losses)
        if any(weight <= 0 for weight in self.losses.values()):
            raise ValueError("mixture: give each loss a weight above 0, such as {sigmoid: 0.8, bco: 0.2}")
        self.only_with(not self.mixture, "beside mixture", "loss")
        free = [name for name in names if name in WITHOUT_REFERENCE]
        if free and len(free) < len(names):
            raise ValueError(f"mixture: {free[0]} has no reference and cannot be mixed with losses that have one")
        for name in ("robust", "exo"):
            if name in names and self.label_smoothing == 0:
                raise ValueError(f"loss: {name} needs label_smoothing: the rate of flipped labels, such as 0.1")
        if "orpo" in names and not self.nll_coef:
            raise ValueError("loss: orpo needs nll_coef: 1.0, the fine-tuning that its odds ratio is added to")
        self.only_with(any(name in SMOOTHED for name in names), f"for loss: {' + '.join(names)}", "label_smoothing")
        self.only_with("simpo" in names, f"for loss: {' + '.join(names)}", "margin")
        for name in names:
            self.only_with(name in OF_DIFFERENCES, f"for loss: {name}", "divergence")
            self.only_with(name in SUMS_OVER_PAIRS + TRANSPORTS, f"for loss: {name}", "tail_weight")
            self.only_with(name in SUMS_OVER_PAIRS, f"for loss: {name}", "weighting")
        self.only_with(self.divergence == "alpha", f"with divergence: {self.divergence}", "divergence_alpha")
        if self.divergence == "alpha" and self.divergence_alpha == 1:
            raise ValueError("divergence_alpha: 1 is the reverse KL: give divergence: reverse_kl")
        return self

    @model_validator(mode="after")
    def _check_moving(self) -> Self:
        moving = self.moving_reference
        if moving is None:
            return self
        self.only_with(
            self.has_reference, f"for loss: {next(iter(self.losses))}, which has no reference", "moving_reference"
        )
        if moving.mix < 1 and (self.model.lora is not None or self.model.adapter == "continue"):
            raise ValueError(
                "moving_reference.mix: the mean of two adapters' factors is not that of their weights: give mix: 1, "
                "or train without lora"
            )
        if self.train.patience is not None:
            raise ValueError(
                "train.patience compares validations, and each move of moving_reference changes what they measure; "
                "remove one of the two"
            )
        return self
