"""What a model's folder says about its chat format: template, record, generation config. It knows no messages."""

import json
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedTokenizerBase

from alignkit.config import InputError

TEMPLATES = Path(__file__).parent / "templates"
RECORD = "chat_format.json"
"""The file in an artifact that says how it was trained to be spoken to."""


def sources(tokenizer: PreTrainedTokenizerBase, template: str | None) -> tuple[str, str]:
    """The template's text, and the one for conversations with tools (nearly always the same)."""
    if template in ("chatml", "none"):
        if template == "none" and not tokenizer.eos_token:
            raise InputError("chat_template: none ends each answer in an eos_token; name one in model.eos_token")
        text = (TEMPLATES / {"chatml": "chatml.jinja", "none": "plain.jinja"}[template]).read_text(encoding="utf-8")
        return text, text
    if template:
        try:
            text = Path(template).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f'chat_template: {template!r} is no "chatml", "none" or readable file') from error
        return text, text
    own = tokenizer.chat_template
    if not own:
        name = tokenizer.name_or_path or "the tokenizer"
        raise InputError(f"{name} has no chat template; give chat_template: chatml, none, or a .jinja file")
    if isinstance(own, str):
        return own, own
    if "default" not in own:
        raise InputError(f"the tokenizer's chat templates {sorted(own)} have no `default`; give chat_template")
    return own["default"], own.get("tool_use", own["default"])


def record_of(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    path = Path(tokenizer.name_or_path or "", RECORD)
    return json.loads(path.read_text(encoding="utf-8")) if tokenizer.name_or_path and path.is_file() else {}


def generation_config_of(tokenizer: PreTrainedTokenizerBase) -> GenerationConfig | None:
    folder = Path(tokenizer.name_or_path or "")
    found = tokenizer.name_or_path and (folder / "generation_config.json").is_file()
    return GenerationConfig.from_pretrained(folder) if found else None


def write_generation_config(generation: GenerationConfig, folder: Path) -> None:
    """Write a generation config, which then samples where it says how: many forget to say that they sample at all."""
    neutral = {"temperature": 1, "top_p": 1, "typical_p": 1, "top_k": 50, "min_p": None}
    told = any(getattr(generation, name) not in (None, value) for name, value in neutral.items())
    if told and generation.do_sample is None and generation.temperature != 0:
        generation.do_sample = True
    # Not save_pretrained: it refuses a changed config for any odd field of the base, after all the training.
    generation.to_json_file(folder / "generation_config.json", keys_to_pop=["compile_config"])


def as_list(ids: int | list[int] | None) -> list[int]:
    return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)
