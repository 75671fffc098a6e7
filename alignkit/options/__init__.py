"""The options of every stage, by the stage's name. Knows no model and no torch: checking a recipe is instant."""

from alignkit.config import Config
from alignkit.options.critique import CritiqueConfig
from alignkit.options.dpo import DpoConfig
from alignkit.options.evaluate import EvaluateConfig
from alignkit.options.kto import KtoConfig
from alignkit.options.ppo import PpoConfig
from alignkit.options.pretrain import PretrainConfig
from alignkit.options.reward import RewardConfig
from alignkit.options.sample import SampleConfig
from alignkit.options.sft import SftConfig
from alignkit.options.trl import TrlConfig

STAGES: dict[str, type[Config]] = {
    "pretrain": PretrainConfig,
    "sft": SftConfig,
    "reward": RewardConfig,
    "dpo": DpoConfig,
    "kto": KtoConfig,
    "ppo": PpoConfig,
    "sample": SampleConfig,
    "critique": CritiqueConfig,
    "trl": TrlConfig,
    "evaluate": EvaluateConfig,
}
