"""How a policy's weights come to a vLLM server: its adapter, or the whole of them. Knows no prompt and no stage.

Both go through a folder that the server sees: /v1/load_lora_adapter loads an adapter from it; of whole weights the
workers' own `reload_weights` rereads it, which /collective_rpc calls where the server's development mode is on.
"""

import shutil
from pathlib import Path
from typing import Any
from uuid import uuid4

from transformers import AutoConfig

from alignkit.chat import ChatFormat
from alignkit.config import InputError
from alignkit.generate import EngineFailure
from alignkit.models import save_model
from alignkit.policy import Policy
from reward_models.http import ask, get, post

OURS = "alignkit-"
"""How the names of our adapters begin."""
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as --max-lora-rank."""


def base_of(policy: Policy) -> str:
    """The folder or name of the weights that the policy started from, and its adapter stands on."""
    return str(policy.model.name_or_path)


def start_command(policy: Policy, bf16: bool) -> str:
    """How a server for this policy is started, to compute in the precision in which the trainer does."""
    serve = f"vllm serve {base_of(policy)} --dtype {'bfloat16' if bf16 else 'float32'}"
    reports = "--logprobs-mode processed_logprobs"
    if policy.adapted is None:
        return f"VLLM_SERVER_DEV_MODE=1 {serve} {reports}"
    rank: int = vars(policy.adapted.peft_config["default"])["r"]
    largest = next((known for known in RANKS if known >= rank), rank)
    quantised = " --quantization bitsandbytes" if getattr(policy.model, "is_loaded_in_4bit", False) else ""
    return f"VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 {serve}{quantised} --enable-lora --max-lora-rank {largest} {reports}"


def check_servable(policy: Policy, format: ChatFormat) -> None:
    """Raise EngineFailure where a server on the policy's base has no rows for its tokens, or would not train them."""
    base = AutoConfig.from_pretrained(base_of(policy)).get_text_config().vocab_size
    if format.new_ids or policy.model.config.get_text_config().vocab_size != base:
        raise EngineFailure(
            "rollouts.engine: vllm serves a base as it stands, and the policy has tokens that the base lacks: "
            "fine-tune a base with a chat template first (sft), or sample with rollouts.engine: transformers"
        )


def hand_over(policy: Policy, url: str, folder: Path, **options: Any) -> str:
    """Have the server at `url` take the policy's weights as they are, and return the name by which they answer.

    What `folder` held, and adapters that a run gave before, go. An adapter has a name and a place of its own, by which
    vLLM keys its prefix cache; of whole weights the cache is reset. Raises InputError or OSError, as
    `reward_models.http` does, and InputError for a server of another base.
    """
    cards = get(f"{url}/v1/models", **options)
    served = served_as(cards, base_of(policy), url)
    if policy.adapted is None and policy.model.config.get_text_config().tie_word_embeddings:
        check_head(url, **options)
    for old in (card["id"] for card in cards["data"] if card["id"].startswith(OURS)):
        ask(f"{url}/v1/unload_lora_adapter", {"lora_name": old}, **options)
    name = f"{OURS}{uuid4().hex}"
    shutil.rmtree(folder, ignore_errors=True)
    save_model(policy.model, policy.adapted, folder / name)
    if policy.adapted is not None:
        ask(f"{url}/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder / name)}, **options)
        return name
    reload = {"method": "reload_weights", "kwargs": {"weights_path": str(folder / name)}}
    ask(f"{url}/collective_rpc", reload, **options)
    if post(f"{url}/reset_prefix_cache", {}, **options) != {"success": True}:
        raise InputError(f"{url}: keeps its prefix cache while it answers others; one server serves one run")
    return served


def check_head(url: str, **options: Any) -> None:
    """Raise InputError where rereading leaves a tied head as it was: a CPU's workers compute it from a packed copy."""
    if "device_config=cpu," in get(f"{url}/server_info", **options)["vllm_config"]:
        raise InputError(
            f"{url}: on a CPU, vLLM rereads all weights but a head that is tied to the embeddings: train an adapter "
            "(model.lora)"
        )


def served_as(models: Any, base: str, url: str) -> str:
    """What a server calls the base, from its list of models; InputError where none has the base as its `root`."""
    try:
        roots = {str(card["root"]): str(card["id"]) for card in models["data"] if card["parent"] is None}
    except (KeyError, TypeError) as error:
        raise InputError(f"{url}/v1/models: its answer lists no models: {str(models)[:80]!r}") from error
    for root, name in roots.items():
        if root == base or Path(root).absolute() == Path(base).absolute():
            return name
    raise InputError(f"{url}: serves {', '.join(roots)}, and the policy's base is {base}")
