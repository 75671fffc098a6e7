"""Which engine answers prompts, each behind the one call `rollout`. Knows no reward and no training."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from accelerate import Accelerator

from alignkit.chat import ChatFormat
from alignkit.continuous import Continuous
from alignkit.draws import Draws
from alignkit.generate import rollout
from alignkit.options.ppo import PpoConfig
from alignkit.options.shared import RuntimeOptions
from alignkit.policy import Policy
from alignkit.records import Completion, Prompt
from alignkit.vllm_server import VllmServer


class Engine(Protocol):
    """Samples from a policy."""

    def rollout(
        self,
        policy: Policy,
        format: ChatFormat,
        prompts: Sequence[Prompt],
        draws: Draws,
    ) -> list[Completion]:
        """As `alignkit.generate.rollout`."""
        ...

    def refresh(self) -> None:
        """The policy's weights are other ones now."""


class Transformers:
    """The policy itself, by transformers' `generate` and keyed draws."""

    def rollout(self, policy: Policy, format: ChatFormat, prompts: Sequence[Prompt], draws: Draws) -> list[Completion]:
        """`alignkit.generate.rollout`."""
        return rollout(policy, format, prompts, **vars(draws))

    def refresh(self) -> None:
        """There is no copy to renew."""


def open_engine(config: PpoConfig, runtime: RuntimeOptions, folder: Path, accelerator: Accelerator) -> Engine:
    """What `config.rollouts` names; weights for a server are written to `folder`."""
    if config.rollouts.engine == "vllm":
        key = os.environ.get("VLLM_API_KEY")
        return VllmServer(runtime.rollout_url, folder.absolute(), accelerator, key=key)
    return Continuous() if config.rollouts.engine == "continuous" else Transformers()
