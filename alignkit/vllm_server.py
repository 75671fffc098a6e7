"""Completions from a vLLM server: what it is asked, and what it answers. Knows no stage, imports no vLLM.

The server is vLLM's own (`vllm serve`), as docs/rollouts.md starts it: POST /v1/completions with token ids in and out.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from alignkit.chat import ChatFormat
from alignkit.config import InputError
from alignkit.draws import Draws
from alignkit.generate import EngineFailure, completion_of
from alignkit.keyed import row_keys
from alignkit.policy import Policy
from alignkit.records import Completion, Prompt
from alignkit.together import together
from alignkit.vllm_weights import check_servable, hand_over, start_command
from reward_models.http import post

T = TypeVar("T")
AT_ONCE = 256
"""Prompts under way at a time: the server forms its own batches of them."""


class VllmServer:
    """A vLLM server that samples from the policy's weights."""

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
        self.model = ""
        """What the server calls the weights that it was given."""
        self.fresh = False
        """Whether those are the policy's of now."""

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
            "model": self.model,
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
        """Have the server take the policy's weights as they are now."""
        check_servable(policy, format)

        def hand() -> str:
            return self._tried(policy, lambda: hand_over(policy, self.url, self.folder, **self.options))

        names = [together(lambda: hand() if self.accelerator.is_main_process else "")]
        broadcast_object_list(names)
        self.model, self.fresh = names[0], True

    def _tried(self, policy: Policy, work: Callable[[], T]) -> T:
        try:
            return work()
        except (OSError, InputError) as error:
            command = start_command(policy, self.accelerator.mixed_precision == "bf16")
            raise EngineFailure(
                f"rollouts.engine: vllm: {error}. The server has to run, in an environment of its own, as\n"
                f"    {command}\n"
                f"(on a CPU with --no-enable-chunked-prefill) at runtime.rollout_url (now {self.url}), and to see the "
                f"folder {self.folder}; then run again"
            ) from error


def read_choices(url: str, body: dict[str, Any], answer: Any) -> list[tuple[list[int], list[float]]]:
    """The ids of each sample, its stop token included, and their log-probabilities. Raises InputError."""
    try:
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
        found = [(choice["token_ids"], choice["logprobs"]["token_logprobs"]) for choice in choices]
        whole = all(choice["finish_reason"] in ("stop", "length") for choice in choices)
        asked = all(choice["prompt_token_ids"] == body["prompt"] for choice in choices)
        fit = all(len(ids) == len(logps) and None not in logps for ids, logps in found)
        cut = any(c["finish_reason"] == "length" and len(c["token_ids"]) < body["max_tokens"] for c in choices)
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{url}: no choices with token_ids and logprobs in its answer: {str(answer)[:160]}"
        ) from error
    if len(found) != body["n"] or not (whole and asked and fit):
        raise InputError(f"{url}: its answer is not {body['n']} whole samples of the prompt: {str(answer)[:160]}")
    if cut:
        raise InputError(f"{url}: a sample ends before max_new_tokens {body['max_tokens']}: raise its --max-model-len")
    return cast("list[tuple[list[int], list[float]]]", found)
