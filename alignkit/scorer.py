"""A transformer trunk with one float32 head: reward model and value function. Knows no stage and no data."""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from accelerate import init_empty_weights
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel

from alignkit.adapters import add_adapter
from alignkit.chat import ChatFormat
from alignkit.models import HEAD_FILE, load_model, save_model
from alignkit.options.shared import LoraOptions, ModelOptions
from alignkit.role import OWN, Role
from alignkit.trie import TrieBatch
from alignkit.trunk import run_trunk, trunk_of

if TYPE_CHECKING:
    from peft import PeftModel

logger = logging.getLogger(__name__)


class Scorer(Role):
    """One number per token: a reward at a sequence's end, or a value at each prediction's source."""

    mean: Tensor
    """[] float32, mean raw score of the reference responses."""
    deviation: Tensor
    """[] float32, their standard deviation."""

    def __init__(
        self, model: PreTrainedModel, adapted: "PeftModel | None" = None, tries: bool = True, adapter: str = OWN
    ) -> None:
        super().__init__(model, adapted, tries, adapter)
        self.head = nn.Linear(model.config.get_text_config().hidden_size, 1)
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("deviation", torch.ones(()))

    def forward(self, batch: TrieBatch, at: Literal["last", "source"] = "last") -> Tensor:
        """Raw scores, float32: [O] at each sequence's last token, or [E] at each entry's source."""
        nodes, owners = batch.source, batch.owner
        if at == "last":
            nodes, owners = batch.last, torch.arange(len(batch.last), device=batch.last.device)
        self.speak()
        hidden = run_trunk(trunk_of(self.model), batch, nodes, owners, self.tries).hidden
        with torch.autocast(hidden.device.type, enabled=False):
            return self.head(hidden.float()).squeeze(-1)

    def normalise(self, scores: Tensor) -> Tensor:
        """Scores in deviations from the mean of the reference responses."""
        return (scores - self.mean) / self.deviation

    def fold_normalisation(self) -> None:
        """Put mean and deviation into the head, so that raw scores are normalised ones (for a critic)."""
        with torch.no_grad():
            self.head.weight /= self.deviation
            self.head.bias.copy_((self.head.bias - self.mean) / self.deviation)
            self.mean.zero_()
            self.deviation.fill_(1.0)


def load_scorer(
    options: ModelOptions,
    *,
    device: torch.device | str = "cpu",
    precision: Literal["float32", "bf16"] = "float32",
    trainable: bool = True,
    seed: int = 0,
    zero_head: bool = False,
    format: ChatFormat | None = None,
) -> Scorer:
    """A scorer from its artifact, or a new head on any checkpoint.

    A new head is drawn from N(0, 1/(d+1)) (Stiennon et al. 2020, arXiv:2009.01325, p. 11), or zero where asked.
    """
    with _no_load_report((Path(options.path) / HEAD_FILE).is_file()):
        model, adapted, tries = load_model(options, device, precision, trainable, seed, format)
    model.set_output_embeddings(nn.Identity())
    scorer = Scorer(model, adapted, tries).to(torch.device(device))
    _fill_head(scorer, options.path, zero_head, seed)
    return scorer.requires_grad_(False) if not trainable else scorer


def scorer_on(base: Role, adapter: str, source: str | LoraOptions, *, trainable: bool = True, seed: int = 0) -> Scorer:
    """A scorer that is one more adapter, with a head, on the base of another role.

    `source`: the adapter of an artifact, with its head or one of zeros, or the shape of a new adapter under zeros.
    Raises InputError where the artifact has whole weights, or an adapter of another base.
    """
    add_adapter(base, adapter, source, trainable=trainable, seed=seed)
    scorer = Scorer(base.model, base.adapted, base.tries, adapter).to(next(base.model.parameters()).device)
    _fill_head(scorer, source if isinstance(source, str) else "", True, seed)
    scorer.head.requires_grad_(trainable)
    return scorer


def _fill_head(scorer: Scorer, path: str, zero: bool, seed: int) -> None:
    """The head of the artifact at `path` or, without one, a new head."""
    file = Path(path) / HEAD_FILE
    if not file.is_file():
        _draw_head(scorer.head, zero, seed)
        return
    state = load_file(file)
    scorer.head.load_state_dict({"weight": state["weight"], "bias": state["bias"]})
    scorer.mean.copy_(state["mean"])
    scorer.deviation.copy_(state["deviation"])


@contextmanager
def _no_load_report(quiet: bool) -> Iterator[None]:
    """A scorer's weights have no language-model head: transformers would report it missing, and call it untrained."""
    reporter = logging.getLogger("transformers.modeling_utils")

    def passes(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR or not quiet

    reporter.addFilter(passes)
    try:
        yield
    finally:
        reporter.removeFilter(passes)


def _draw_head(head: nn.Linear, zero: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(head.weight.shape, generator=generator) / math.sqrt(head.in_features + 1)
    with torch.no_grad():
        head.weight.copy_(torch.zeros_like(drawn) if zero else drawn)
        head.bias.zero_()


def save_scorer(scorer: Scorer, format: ChatFormat, directory: Path) -> None:
    """Write the trunk or adapter, the head, and how the model is spoken to.

    Where the architecture has a SequenceClassification class, the folder loads as one (its head has no bias: the
    constant is in head.safetensors, and differences of scores do not need it).
    """
    directory.mkdir(parents=True, exist_ok=True)
    scorer.model.config.pad_token_id = _padding(scorer.model.config, format)
    if scorer.adapted is not None:
        save_model(scorer.model, scorer.adapted, directory)
    else:
        as_classifier(scorer).save_pretrained(directory)
    format.save(directory)
    state = {
        "weight": scorer.head.weight.detach(),
        "bias": scorer.head.bias.detach(),
        "mean": scorer.mean,
        "deviation": scorer.deviation,
    }
    save_file({name: tensor.cpu().contiguous() for name, tensor in state.items()}, directory / HEAD_FILE)


def _padding(config: PretrainedConfig, format: ChatFormat) -> int:
    """A token that ends no answer: a SequenceClassification model reads its score before all padding."""
    known = (format.tokenizer.pad_token_id, getattr(config, "pad_token_id", None), *range(len(format.stop_ids) + 1))
    return next(one for one in known if one is not None and one not in format.stop_ids)


def as_classifier(scorer: Scorer) -> PreTrainedModel:
    """The same parameters as a SequenceClassification model, or the bare trunk where that class does not exist."""
    trunk = scorer.model.base_model
    known = {k: v for k, v in scorer.model.config.to_dict().items() if k not in ("id2label", "label2id")}
    config = type(scorer.model.config).from_dict(known | {"num_labels": 1})
    try:
        with init_empty_weights():
            classifier = AutoModelForSequenceClassification.from_config(config)
    except ValueError:
        return trunk
    setattr(classifier, classifier.base_model_prefix, trunk)
    for module in classifier.children():
        if isinstance(module, nn.Linear) and module.out_features == 1:
            module.weight = scorer.head.weight
    return classifier
