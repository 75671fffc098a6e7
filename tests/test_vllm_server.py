"""A vLLM server as the engine: what it is asked and given, what it says of its tokens, what becomes of its faults."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from accelerate import Accelerator
from http_server import Served, serving
from vllm_fake import LENGTH, fake_vllm

from alignkit.chat import ChatFormat
from alignkit.config import InputError
from alignkit.draws import Draws
from alignkit.experience import make_rollouts, read_policy
from alignkit.generate import EngineFailure
from alignkit.mismatch import engine_logps
from alignkit.models import load_policy, load_tokenizer
from alignkit.options.shared import LoraOptions, ModelOptions
from alignkit.policy import Policy
from alignkit.records import Completion, Message, Prompt
from alignkit.vllm_server import VllmServer, read_choices
from alignkit.vllm_weights import start_command

TEXTS = ["a", "what is it?", "tell me of 12 big bears."]
PROMPTS = [Prompt(messages=(Message(role="user", content=text),), columns={"text": text}) for text in TEXTS]
OPTIONS: dict[str, Any] = {"seed": 3, "update": 7, "samples": 4, "max_new_tokens": 10}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.checkpoint(tmp_path_factory.mktemp("tiny"), spread=0.15)


@pytest.fixture(scope="module")
def format(folder: Path) -> ChatFormat:
    return ChatFormat.load(load_tokenizer(str(folder)), "none", eos_token=tiny.END)


def adapted(folder: Path, seed: int = 0) -> Policy:
    """A policy whose adapter is far from doing nothing."""
    policy = load_policy(ModelOptions(path=str(folder), lora=LoraOptions(r=4)), seed=seed).eval()
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if parameter.requires_grad and "lora_B" in name:
                parameter.normal_(0, 0.2, generator=torch.Generator().manual_seed(seed))
    return policy


def server(served: Served, tmp_path: Path, **options: Any) -> VllmServer:
    return VllmServer(served.url, tmp_path / "engine", Accelerator(cpu=True), wait=0.01, **options)


def ids(completions: list[Completion]) -> list[tuple[int, ...]]:
    return [completion.ids for completion in completions]


def test_what_is_asked(folder: Path, format: ChatFormat, tmp_path: Path) -> None:
    with fake_vllm(folder) as (fake, served):
        engine = server(served, tmp_path, key="secret")
        whole = engine.rollout(adapted(folder), format, PROMPTS, Draws(temperature=0.7, min_new_tokens=2, **OPTIONS))
        second = engine.rollout(
            adapted(folder), format, PROMPTS[1:2], Draws(temperature=0.7, min_new_tokens=2, numbers=[1], **OPTIONS)
        )
    assert served.paths[:2] == ["/v1/models", "/v1/load_lora_adapter"]
    assert served.paths[2:] == ["/v1/completions"] * 4
    assert {headers["Authorization"] for headers in served.headers} == {"Bearer secret"}
    name = fake.loaded[0]
    assert served.asked[1] == {"lora_name": name, "lora_path": str(tmp_path / "engine" / name)}
    bodies = served.asked[2:]
    assert sorted(body.pop("prompt") for body in bodies[:3]) == sorted(format.prompt(p.messages) for p in PROMPTS)
    seeds = [body.pop("seed") for body in bodies]
    assert len(set(seeds[:3])) == 3 and seeds[3] in seeds and all(0 <= seed < 2**62 for seed in seeds)
    assert bodies[0] == bodies[1] == {
        "model": name, "n": 4, "max_tokens": 10, "min_tokens": 2, "temperature": 0.7, "top_p": 1.0, "top_k": 0,
        "min_p": 0.0, "repetition_penalty": 1.0, "stop_token_ids": [format.end_id], "ignore_eos": True, "logprobs": 0,
        "return_token_ids": True,
    }  # fmt: skip
    assert [completion.columns["text"] for completion in whole] == [text for text in TEXTS for _ in range(4)]
    assert ids(second) == ids(whole)[4:8] and len(set(ids(whole))) > 6
    assert all(c.finished == (c.ids[-1] == format.end_id) and min(len(c.ids), 3) == 3 for c in whole)
    assert {completion.finished for completion in whole} == {True, False}


@pytest.mark.parametrize(("temperature", "held", "whole"), [(1.0, 0, False), (0.7, 3, False), (0.7, 0, True)])
def test_it_says_what_the_trainer_reads(
    folder: Path, format: ChatFormat, tmp_path: Path, temperature: float, held: int, whole: bool
) -> None:
    policy = load_policy(ModelOptions(path=str(folder))).eval() if whole else adapted(folder)

    def difference(completions: list[Completion]) -> float:
        rollouts = make_rollouts(completions, format, 512, min_new_tokens=held)
        trainer, _ = read_policy(rollouts, policy, Accelerator(cpu=True), temperature)
        said = engine_logps(completions, rollouts.mask)
        assert said is not None
        return float((said - trainer).abs().sum() / rollouts.mask.sum())

    with fake_vllm(folder) as (fake, served):
        fake.dev, fake.updates = whole, not whole
        engine = server(served, tmp_path)
        options = {**OPTIONS, "temperature": temperature, "min_new_tokens": held}
        assert difference(engine.rollout(policy, format, PROMPTS, Draws(**options))) < 2e-5
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.mul_(1.3 if parameter.requires_grad else 1.0)
        assert difference(engine.rollout(policy, format, PROMPTS, Draws(**options))) > 1e-3  # still the one before
        engine.refresh()
        assert difference(engine.rollout(policy, format, PROMPTS, Draws(**options))) < 2e-5
        fake.processed = False
        raw = difference(engine.rollout(policy, format, PROMPTS, Draws(**options)))
        assert (raw > 1e-2) == (temperature != 1.0)
        greedy = engine.rollout(policy, format, PROMPTS, Draws(**{**options, "temperature": 0.0, "samples": 1}))
        assert all(completion.logps is None for completion in greedy)
    kept = [path.name for path in (tmp_path / "engine").iterdir()]
    if whole:
        rpc = ["/v1/models", "/collective_rpc", "/reset_prefix_cache"]
        assert [path for path in served.paths if path != "/v1/completions"] == 2 * rpc and len(kept) == 1
        return
    assert len(fake.loaded) == len(set(fake.loaded)) == 2 and list(fake.adapters) == fake.loaded[1:] == kept


def test_a_server_that_was_started_anew_or_left_by_another_run_is_given_the_adapter(
    folder: Path, format: ChatFormat, tmp_path: Path
) -> None:
    policy = adapted(folder)
    with fake_vllm(folder) as (fake, served):
        for name in ("left", "here"):
            server(served, tmp_path / name).rollout(policy, format, PROMPTS, Draws(**OPTIONS))
        assert list(fake.adapters) == fake.loaded[1:] and len(fake.loaded) == 2
        engine = server(served, tmp_path / "here")
        engine.rollout(policy, format, PROMPTS, Draws(**OPTIONS))
        fake.adapters.clear()
        engine.refresh()
        engine.rollout(policy, format, PROMPTS, Draws(**OPTIONS))
        assert list(fake.adapters) == fake.loaded[3:]


def test_every_fault_names_the_server_and_how_to_start_it(folder: Path, format: ChatFormat, tmp_path: Path) -> None:
    policy = adapted(folder)
    command = f"vllm serve {folder} --dtype float32 --enable-lora --max-lora-rank 8 --logprobs-mode processed_logprobs"
    assert start_command(policy, False).endswith(command)

    quantised = load_policy(ModelOptions(path=str(folder), lora=LoraOptions(r=20), load_in_4bit=True))
    started = start_command(quantised, True)
    assert f"{folder} --dtype bfloat16 --quantization bitsandbytes --enable-lora --max-lora-rank 32 " in started

    def fault(engine: VllmServer, **changes: Any) -> str:
        with pytest.raises(EngineFailure) as caught:
            engine.rollout(policy, format, PROMPTS, Draws(**{**OPTIONS, **changes}))
        assert command in str(caught.value)
        return str(caught.value)

    with fake_vllm(folder) as (fake, served):
        engine = server(served, tmp_path, retries=1)
        assert "ends before max_new_tokens 200: raise its --max-model-len" in fault(engine, max_new_tokens=200)
        fake.adapters.clear()
        assert f"{served.url}/v1/completions: refuses the request with status 404" in fault(engine)
        fake.down = 0
        assert "no answer after 2 tries: status 503" in fault(engine)
    assert f"{served.url}/v1/completions: no answer after 2 tries" in fault(engine)
    with fake_vllm(tmp_path) as (_, served):
        assert f"serves {tmp_path}, and the policy's base is {folder}" in fault(server(served, tmp_path / "other"))
    with fake_vllm(folder) as (fake, served):
        fake.updates = False
        assert f"{served.url}/v1/load_lora_adapter: refuses the request" in fault(server(served, tmp_path / "closed"))
        fake.updates, policy = True, load_policy(ModelOptions(path=str(folder), lora=LoraOptions(r=16)))
        command = command.replace("rank 8", "rank 16")
        said = fault(server(served, tmp_path / "rank", retries=0))
        assert "LoRA rank 16 is greater than max_lora_rank 8" in said
    with serving(lambda path, body: (200, {"data": "?"}), routes=True) as served:
        assert "its answer lists no models" in fault(server(served, tmp_path / "strange"))
    policy, command = load_policy(ModelOptions(path=str(folder))), f"VLLM_SERVER_DEV_MODE=1 vllm serve {folder} "
    with fake_vllm(folder) as (fake, served):
        assert f"{served.url}/collective_rpc: refuses the request with status 404" in fault(server(served, tmp_path))
        fake.dev = fake.busy = True
        assert "keeps its prefix cache while it answers others" in fault(server(served, tmp_path))
        long = Prompt(messages=(Message(role="user", content="a" * LENGTH),))
        fake.busy = False
        with pytest.raises(EngineFailure, match=f"maximum context length is {LENGTH} tokens"):
            server(served, tmp_path).rollout(policy, format, [long], Draws(**OPTIONS))


def test_answers_that_cannot_be_used_are_refused(folder: Path) -> None:
    body: dict[str, Any] = {"prompt": [1, 2], "n": 1, "max_tokens": 2, "min_tokens": 0, "temperature": 1.0}
    good = {
        "index": 0, "token_ids": [5, 6], "logprobs": {"token_logprobs": [-1.0, -2.0]}, "finish_reason": "length",
        "prompt_token_ids": [1, 2],
    }  # fmt: skip
    assert read_choices("u", body, {"choices": [good]}) == [([5, 6], [-1.0, -2.0])]
    two = [{**good, "index": 1, "token_ids": [7, 8]}, good]
    assert [ids for ids, _ in read_choices("u", {**body, "n": 2}, {"choices": two})] == [[5, 6], [7, 8]]
    changes: list[dict[str, Any]] = [
        {"token_ids": [5]}, {"finish_reason": "abort"}, {"prompt_token_ids": [2]},
        {"logprobs": {"token_logprobs": [None, -1.0]}},
    ]  # fmt: skip
    for choices in [[good, good], *([{**good, **change}] for change in changes)]:
        with pytest.raises(InputError, match="not 1 whole samples"):
            read_choices("u", body, {"choices": choices})
    with pytest.raises(InputError, match="ends before max_new_tokens 3: raise its --max-model-len"):
        read_choices("u", {**body, "max_tokens": 3}, {"choices": [good]})
    for answer in ({"error": "x"}, {"choices": [{**good, "logprobs": None}]}, [1]):
        with pytest.raises(InputError, match="no choices with token_ids and logprobs"):
            read_choices("u", body, answer)


def test_what_it_cannot_serve_is_refused(folder: Path, format: ChatFormat, tmp_path: Path) -> None:
    words = ChatFormat.load(load_tokenizer(str(folder)), "chatml")
    with fake_vllm(folder) as (_, served), pytest.raises(EngineFailure, match="tokens that the base lacks"):
        server(served, tmp_path).rollout(adapted(folder), words, PROMPTS, Draws(**OPTIONS))
    more = load_policy(ModelOptions(path=str(folder)))
    more.model.resize_token_embeddings(len(words.tokenizer))
    with fake_vllm(folder) as (_, served), pytest.raises(EngineFailure, match="tokens that the base lacks"):
        server(served, tmp_path).rollout(more, format, PROMPTS, Draws(**OPTIONS))


def test_a_tied_head_is_served_where_the_server_rereads_it(folder: Path, format: ChatFormat, tmp_path: Path) -> None:
    tiny.checkpoint(tmp_path / "tied", tied=True)
    whole = load_policy(ModelOptions(path=str(tmp_path / "tied"))).eval()
    with fake_vllm(tmp_path / "tied") as (fake, served):
        fake.dev = True
        with pytest.raises(EngineFailure, match=r"a head that is tied to the embeddings: train an adapter"):
            server(served, tmp_path).rollout(whole, format, PROMPTS, Draws(**OPTIONS))
        assert "/collective_rpc" not in served.paths
        server(served, tmp_path).rollout(adapted(tmp_path / "tied"), format, PROMPTS, Draws(**OPTIONS))
        fake.device = "cuda"
        server(served, tmp_path).rollout(whole, format, PROMPTS, Draws(**OPTIONS))
    assert served.paths.count("/server_info") == 2
