"""A stand-in for `vllm serve`: its routes and their answers' form as vLLM documents them, over a tiny model on a CPU.

It knows nothing of alignkit: transformers and PEFT load what it is told to load, and torch's own generator draws.
"""

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


@dataclass
class FakeVllm:
    """The server's state. `down`: it answers 503 from so many completions on; `processed`: --logprobs-mode."""

    base: str
    root: str = ""
    """What it says that it holds."""
    adapters: dict[str, Any] = field(default_factory=dict)
    loaded: list[str] = field(default_factory=list)
    down: int | None = None
    processed: bool = True
    completions: int = 0
    lock: Lock = field(default_factory=Lock)

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        with self.lock:
            return self.routes(path, body)

    def routes(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path == "/v1/models":
            cards = [
                {
                    "id": self.base,
                    "object": "model",
                    "root": self.root or self.base,
                    "parent": None,
                    "max_model_len": 128,
                }
            ]
            return 200, {"object": "list", "data": cards}
        if path == "/v1/load_lora_adapter":
            name = body["lora_name"]
            if name in self.adapters:
                return 400, error(f"The lora adapter '{name}' has already been loaded.")
            base = AutoModelForCausalLM.from_pretrained(self.base)
            self.adapters[name] = PeftModel.from_pretrained(base, body["lora_path"]).eval()
            self.loaded.append(name)
            return 200, f"Success: LoRA adapter '{name}' added successfully.".encode()
        if path == "/v1/unload_lora_adapter":
            if self.adapters.pop(body["lora_name"], None) is None:
                return 404, error(f"The lora adapter '{body['lora_name']}' cannot be found.")
            return 200, b"Success: removed."
        if path != "/v1/completions":
            return 404, {"detail": "Not Found"}
        self.completions += 1
        if self.down is not None and self.completions > self.down:
            return 503, error("down")
        if body["model"] not in self.adapters:
            return 404, error(f"The model `{body['model']}` does not exist.")
        if len(body["prompt"]) + body["max_tokens"] > 128:
            return 400, error("This model's maximum context length is 128 tokens.")
        return 200, self.complete(body)

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        assert body["ignore_eos"] and body["return_token_ids"] and body["logprobs"] == 0
        choices = [self.sample(body, index) for index in range(body["n"])]
        return {"id": "cmpl-1", "object": "text_completion", "model": body["model"], "choices": choices, "usage": {}}

    @torch.no_grad()
    def sample(self, body: dict[str, Any], index: int) -> dict[str, Any]:
        model, ids = self.adapters[body["model"]], list(body["prompt"])
        generator = torch.Generator().manual_seed(body["seed"] + index)
        stops, drawn, logps = body["stop_token_ids"], [], []
        while len(drawn) < body["max_tokens"] and not (drawn and drawn[-1] in stops):
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


def error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "BadRequestError", "param": None, "code": 400}}


@contextmanager
def fake_vllm(base: Path) -> Iterator[tuple[FakeVllm, Served]]:
    """A running one that was started on `base`."""
    fake = FakeVllm(str(base))
    with serving(fake.answer, routes=True) as served:
        yield fake, served
