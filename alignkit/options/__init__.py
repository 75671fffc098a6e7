"""The options of every stage, by the stage's name. Knows no model and no torch: checking a recipe is instant."""

from importlib import import_module

from alignkit.config import Config

STAGES: dict[str, type[Config]] = {}
for _name in ("pretrain", "sft", "reward", "dpo", "ppo", "evaluate"):
    try:
        STAGES[_name] = getattr(import_module(f"alignkit.options.{_name}"), f"{_name.capitalize()}Config")
    except ModuleNotFoundError as _missing:
        if _missing.name != f"alignkit.options.{_name}":
            raise
