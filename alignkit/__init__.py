"""alignkit: RLHF on pretrained checkpoints, where a batch is the trie of its sequences. Imports nothing until used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alignkit.chat import ChatFormat
    from alignkit.generate import rollout
    from alignkit.loop import Objective, Sums, fit, make_optimizer, update
    from alignkit.models import load_policy, load_tokenizer, save_policy
    from alignkit.options.shared import LoraOptions, ModelOptions, TrainOptions
    from alignkit.packing import pack
    from alignkit.policy import Policy
    from alignkit.scorer import Scorer, load_scorer, save_scorer
    from alignkit.trie import TokenSequence, TrieBatch, sum_by_owner

_HOMES = {
    "chat": ("ChatFormat",),
    "generate": ("rollout",),
    "loop": ("Objective", "Sums", "fit", "make_optimizer", "update"),
    "models": ("load_policy", "load_tokenizer", "save_policy"),
    "options.shared": ("LoraOptions", "ModelOptions", "TrainOptions"),
    "packing": ("pack",),
    "policy": ("Policy",),
    "scorer": ("Scorer", "load_scorer", "save_scorer"),
    "trie": ("TokenSequence", "TrieBatch", "sum_by_owner"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "ChatFormat",
    "LoraOptions",
    "ModelOptions",
    "Objective",
    "Policy",
    "Scorer",
    "Sums",
    "TokenSequence",
    "TrainOptions",
    "TrieBatch",
    "fit",
    "load_policy",
    "load_scorer",
    "load_tokenizer",
    "make_optimizer",
    "pack",
    "rollout",
    "save_policy",
    "save_scorer",
    "sum_by_owner",
    "update",
]


def __getattr__(name: str) -> Any:
    """A public name, imported when first asked for: `import alignkit` alone loads no torch."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'alignkit' has no attribute {name!r}")
    return getattr(import_module(f"alignkit.{_HOME_OF[name]}"), name)
