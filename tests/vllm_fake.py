"""A stand-in for `vllm serve`: its routes and answers as those of vLLM 0.32, over a tiny model on a CPU.

It knows nothing of alignkit: transformers and PEFT load what it is told to load, and torch's own generator draws.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from http_server import Served, serving
from peft import PeftModel
from transformers import AutoModelForCausalLM

TOKEN = "t"
LENGTH = 128
"""--max-model-len."""
RANK = 8
"""--max-lora-rank."""


@dataclass
class FakeVllm:
    """The server's state. `down`: it answers 503 from so many completions on; `processed`: --logprobs-mode; `updates`:
    VLLM_ALLOW_RUNTIME_LORA_UPDATING; `dev`: VLLM_SERVER_DEV_MODE; `busy`: requests of others hold its cache."""

    base: str
    root: str = ""
    """What it says that it holds."""
    adapters: dict[str, Any] = field(default_factory=dict)
    loaded: list[str] = field(default_factory=list)
    weights: Any = None
    """The base, as started or reloaded."""
    reloaded: Any = None
    """Weights that its prefix cache is not of yet."""
    down: int | None = None
    processed: bool = True
    updates: bool = True
    dev: bool = False
    busy: bool = False
    device: str = "cpu"
    refused: tuple[str, int] | None = None
    """A path, and the one request to it that is refused."""
    asked: Counter[str] = field(default_factory=Counter)
    """Requests to each path."""
    completions: int = 0
    lock: Lock = field(default_factory=Lock)

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        with self.lock:
            return self.routes(path, body)

    def routes(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        self.asked[path] += 1
        if (path, self.asked[path]) == self.refused:
            return 400, error("no", "BadRequestError", 400)
        if path == "/v1/models":
            cards = [self.card(self.base, self.root or self.base, None)]
            return 200, {"object": "list", "data": cards + [self.card(name, "?", self.base) for name in self.adapters]}
        if self.updates and path == "/v1/load_lora_adapter":
            return self.load(body["lora_name"], body["lora_path"])
        if self.updates and path == "/v1/unload_lora_adapter":
            if self.adapters.pop(body["lora_name"], None) is None:
                return 404, error(f"The lora adapter '{body['lora_name']}' cannot be found.", "NotFoundError", 404)
            return 200, f"Success: LoRA adapter '{body['lora_name']}' removed successfully.".encode()
        if self.dev and path == "/collective_rpc":
            assert body["method"] == "reload_weights"
            self.reloaded = AutoModelForCausalLM.from_pretrained(body["kwargs"]["weights_path"])
            return 200, {"results": [None]}
        if self.dev and path == "/reset_prefix_cache":
            self.weights = self.weights if self.busy else self.reloaded
            return 200, {"success": not self.busy}
        if self.dev and path == "/server_info":
            return 200, {"vllm_config": f"model='{self.base}', device_config={self.device}, quantization=None"}
        if path != "/v1/completions":
            return 404, {"detail": "Not Found"}
        return self.completed(body)

    def card(self, name: str, root: str, parent: str | None) -> dict[str, Any]:
        length = LENGTH if parent is None else None
        return {"id": name, "object": "model", "root": root, "parent": parent, "max_model_len": length}

    def load(self, name: str, path: str) -> tuple[int, Any]:
        if name in self.adapters:
            said = f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set"
            return 400, error(f"{said} 'load_inplace' to True.", "InvalidUserInput", 400)
        adapter = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(self.base), path).eval()
        if (rank := vars(adapter.peft_config["default"])["r"]) > RANK:
            said = f"Worker failed with error 'LoRA rank {rank} is greater than max_lora_rank {RANK}.'"
            return 500, error(f"Call to add_lora method failed: {said}", "InternalServerError", 500)
        self.adapters[name] = adapter
        self.loaded.append(name)
        return 200, f"Success: LoRA adapter '{name}' added successfully.".encode()

    def completed(self, body: dict[str, Any]) -> tuple[int, Any]:
        self.completions += 1
        if self.down is not None and self.completions > self.down:
            return 503, error("down", "ServiceUnavailable", 503)
        if body["model"] not in (*self.adapters, self.base):
            return 404, error(f"The model `{body['model']}` does not exist.", "NotFoundError", 404)
        if len(body["prompt"]) >= LENGTH:
            said = f"This model's maximum context length is {LENGTH} tokens. However, your prompt contains"
            return 400, error(f"{said} {len(body['prompt'])} input tokens", "BadRequestError", 400)
        if body["temperature"] == 0 and body["n"] > 1:
            return 400, error("n must be 1 when using greedy sampling, got 2.", "BadRequestError", 400)
        return 200, self.complete(body)

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        assert body["ignore_eos"] and body["return_token_ids"] and body["logprobs"] == 0
        choices = [self.sample(body, index) for index in range(body["n"])]
        return {"id": "cmpl-1", "object": "text_completion", "model": body["model"], "choices": choices, "usage": {}}

    @torch.no_grad()
    def sample(self, body: dict[str, Any], index: int) -> dict[str, Any]:
        if self.weights is None:
            self.weights = AutoModelForCausalLM.from_pretrained(self.base)
        model, ids = self.adapters.get(body["model"], self.weights), list(body["prompt"])
        room = min(body["max_tokens"], LENGTH - len(ids))  # it says nothing of what it cuts off
        generator = torch.Generator().manual_seed(body["seed"] + index)
        stops, drawn, logps = body["stop_token_ids"], [], []
        while len(drawn) < room and not (drawn and drawn[-1] in stops):
            raw = model(input_ids=torch.tensor([ids])).logits[0, -1].float()
            logits = raw / (body["temperature"] or 1.0)
            if len(drawn) < body["min_tokens"]:
                logits[stops] = -torch.inf
            greedy = body["temperature"] == 0
            token = int(logits.argmax() if greedy else torch.multinomial(logits.softmax(-1), 1, generator=generator))
            said = logits if self.processed else raw
            logps.append(max(float(said.log_softmax(-1)[token]), -9999.0))
            drawn.append(token)
            ids.append(token)
        return {
            "index": index,
            "text": "",
            "finish_reason": "stop" if drawn[-1] in stops else "length",
            "stop_reason": drawn[-1] if drawn[-1] in stops else None,
            "token_ids": drawn,
            "prompt_token_ids": body["prompt"],
            "prompt_logprobs": None,
            "logprobs": {
                "token_logprobs": logps, "tokens": [TOKEN] * len(drawn), "text_offset": [0] * len(drawn),
                "top_logprobs": [{TOKEN: logp} for logp in logps],
            },
        }  # fmt: skip


def error(message: str, kind: str, code: int) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


@contextmanager
def fake_vllm(base: Path) -> Iterator[tuple[FakeVllm, Served]]:
    """A running one that was started on `base`."""
    fake = FakeVllm(str(base))
    with serving(fake.answer, routes=True) as served:
        yield fake, served
