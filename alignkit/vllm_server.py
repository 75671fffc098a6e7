"""Completions from a vLLM server: what it is asked, and the adapter it is given. Knows no stage, imports no vLLM.

The server is vLLM's own (`vllm serve`, 0.10.2 or later), as docs/rollouts.md starts it: POST /v1/completions with
token ids in and out, /v1/load_lora_adapter and /v1/unload_lora_adapter for weights, GET /v1/models for what it holds.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast
from uuid import uuid4

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from alignkit.chat import ChatFormat
from alignkit.config import InputError
from alignkit.draws import Draws
from alignkit.generate import EngineFailure, completion_of
from alignkit.keyed import row_keys
from alignkit.models import save_model
from alignkit.policy import Policy
from alignkit.records import Completion, Prompt
from reward_models.http import ask, get, post

T = TypeVar("T")
AT_ONCE = 256
"""Prompts under way at a time: the server forms its own batches of them."""
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as --max-lora-rank."""


class VllmServer:
    """A vLLM server that samples from the policy's adapter on the same base."""

    def __init__(
        self,
        url: str,
        folder: Path,
        accelerator: Accelerator,
        *,
        key: str | None = None,
        timeout: float = 1800.0,
        retries: int = 3,
        wait: float = 1.0,
    ) -> None:
        self.url, self.folder, self.accelerator = url.rstrip("/"), folder, accelerator
        self.options = {"key": key, "timeout": timeout, "retries": retries, "wait": wait}
        self.adapter: str | None = None
        """The name of the adapter that the server holds."""
        self.fresh = False
        """Whether that adapter is the policy's of now."""

    def refresh(self) -> None:
        """The policy's weights are other ones now: the next call gives them to the server first."""
        self.fresh = False

    def rollout(
        self,
        policy: Policy,
        format: ChatFormat,
        prompts: Sequence[Prompt],
        draws: Draws,
    ) -> list[Completion]:
        """As `alignkit.generate.rollout`, but for the draws: the server's own, by a seed hashed from (seed, update,
        prompt), to which it adds the sample's number. `draws.token_budget` has no meaning. Raises EngineFailure."""
        with self.drawing(policy, format, prompts, draws) as finish:
            return finish()

    @contextmanager
    def drawing(
        self, policy: Policy, format: ChatFormat, prompts: Sequence[Prompt], draws: Draws
    ) -> Iterator[Callable[[], list[Completion]]]:
        """`rollout` by the policy as it is now, the server at work while the block runs; the call that is given waits
        for it, and raises what `rollout` does. What the block has not waited for in the end is asked no more."""
        if not self.fresh:
            self.give(policy, format)
        numbers = draws.numbers_of(prompts)
        contexts = format.prompts([(prompt.messages, prompt.tools) for prompt in prompts])
        seeds = row_keys(draws.seed, draws.update, list(numbers), [0] * len(prompts)) & ((1 << 62) - 1)
        common: dict[str, Any] = {
            "model": self.adapter,
            "n": draws.samples,
            "max_tokens": draws.max_new_tokens,
            "min_tokens": draws.min_new_tokens,
            "temperature": draws.temperature,
            # The checkpoint's generation config would stand in for what is left out.
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "stop_token_ids": list(format.stop_ids),
            "ignore_eos": True,  # the end token is among stop_token_ids, and only there
            "logprobs": 0,  # of the drawn token alone
            "return_token_ids": True,
        }
        bodies = [
            {**common, "prompt": context, "seed": key} for context, key in zip(contexts, seeds.tolist(), strict=True)
        ]
        url = f"{self.url}/v1/completions"

        def one(body: dict[str, Any]) -> list[tuple[list[int], list[float]]]:
            return read_choices(url, body, post(url, body, **self.options))

        pool = ThreadPoolExecutor(AT_ONCE)
        futures = [pool.submit(one, body) for body in bodies]

        def finish() -> list[Completion]:
            answers = self._tried(policy, lambda: [future.result() for future in futures])
            return [
                completion_of(prompt, ids, format, None if draws.temperature == 0 else logps)
                for prompt, choices in zip(prompts, answers, strict=True)
                for ids, logps in choices
            ]

        try:
            yield finish
        finally:
            pool.shutdown(cancel_futures=True)

    def give(self, policy: Policy, format: ChatFormat) -> None:
        """Save the policy's adapter and have the server load it, in the place of the one before.

        Each goes by a name of its own: vLLM keys its prefix cache by name, and would answer from the old one's.
        """
        if policy.adapted is None or format.new_ids:
            what = "tokens that the base lacks" if format.new_ids else "no adapter"
            raise EngineFailure(f"rollouts.engine: vllm serves LoRA adapters, and the policy has {what}")
        names = [f"alignkit-{uuid4().hex}"]
        if self.accelerator.is_main_process:
            self._tried(policy, lambda: self._exchange(policy, names[0]))
        broadcast_object_list(names)
        self.adapter, self.fresh = names[0], True

    def _exchange(self, policy: Policy, name: str) -> None:
        if self.adapter is None:
            check_base(get(f"{self.url}/v1/models", **self.options), base_of(policy), self.url)
        else:
            ask(f"{self.url}/v1/unload_lora_adapter", {"lora_name": self.adapter}, **self.options)
        shutil.rmtree(self.folder, ignore_errors=True)
        save_model(policy.model, policy.adapted, self.folder / name)
        load = {"lora_name": name, "lora_path": str(self.folder / name)}
        ask(f"{self.url}/v1/load_lora_adapter", load, **self.options)

    def _tried(self, policy: Policy, work: Callable[[], T]) -> T:
        try:
            return work()
        except (OSError, InputError) as error:
            raise EngineFailure(
                f"rollouts.engine: vllm: {error}. The server has to run, in an environment of its own, as\n"
                f"    {start_command(policy)}\n"
                f"at runtime.rollout_url (now {self.url}), and to see the folder {self.folder}; then run again"
            ) from error


def base_of(policy: Policy) -> str:
    """The folder or name of the frozen weights that the adapter stands on."""
    return str(policy.model.name_or_path)


def start_command(policy: Policy) -> str:
    """How a server for this policy is started."""
    rank = policy.adapted.peft_config["default"].r if policy.adapted is not None else RANKS[0]
    largest = next((known for known in RANKS if known >= rank), rank)
    quantised = " --quantization bitsandbytes" if getattr(policy.model, "is_loaded_in_4bit", False) else ""
    return (
        f"VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve {base_of(policy)}{quantised} --enable-lora "
        f"--max-lora-rank {largest} --logprobs-mode processed_logprobs"
    )


def check_base(models: Any, base: str, url: str) -> None:
    """Raise InputError where a server's list of models has none whose `root` is the policy's base."""
    try:
        roots = [str(card["root"]) for card in models["data"]]
    except (KeyError, TypeError) as error:
        raise InputError(f"{url}/v1/models: its answer lists no models: {str(models)[:80]!r}") from error
    if not any(root == base or Path(root).absolute() == Path(base).absolute() for root in roots):
        raise InputError(f"{url}: serves {', '.join(roots)}, and the policy's base is {base}")


def read_choices(url: str, body: dict[str, Any], answer: Any) -> list[tuple[list[int], list[float]]]:
    """The ids of each sample, its stop token included, and their log-probabilities. Raises InputError."""
    try:
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
        found = [(choice["token_ids"], choice["logprobs"]["token_logprobs"]) for choice in choices]
        whole = all(choice["finish_reason"] in ("stop", "length") for choice in choices)
        asked = all(choice["prompt_token_ids"] == body["prompt"] for choice in choices)
        fit = all(len(ids) == len(logps) and None not in logps for ids, logps in found)
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{url}: no choices with token_ids and logprobs in its answer: {str(answer)[:160]}"
        ) from error
    if len(found) != body["n"] or not (whole and asked and fit):
        raise InputError(f"{url}: its answer is not {body['n']} whole samples of the prompt: {str(answer)[:160]}")
    return cast("list[tuple[list[int], list[float]]]", found)
