"""A vLLM server of its own environment, started as its errors say: what it says as the policy moves, and when it dies.

ALIGNKIT_VLLM names the `vllm` executable, such as vllm-env/bin/vllm; all of it runs on a CPU.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from ppo_cases import config, start
from served_cases import drawn, launch, run_served, updates
from vllm_real import free_port, running

from alignkit.chat import ChatFormat
from alignkit.draws import Draws
from alignkit.experience import make_rollouts, read_policy
from alignkit.generate import EngineFailure
from alignkit.mismatch import engine_logps
from alignkit.models import load_policy, load_tokenizer
from alignkit.options.shared import LoraOptions, ModelOptions
from alignkit.policy import Policy
from alignkit.records import Completion, Message, Prompt
from alignkit.runs import read_metrics
from alignkit.vllm_server import VllmServer
from alignkit.vllm_weights import start_command

EXECUTABLE = os.environ.get("ALIGNKIT_VLLM")
pytestmark = pytest.mark.skipif(EXECUTABLE is None, reason="needs vLLM: ALIGNKIT_VLLM, the path of its executable")
LORA = LoraOptions(r=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with heads of a width that vLLM has on a CPU, and prompts."""
    folder = tmp_path_factory.mktemp("served")
    tiny.checkpoint(folder / "model", spread=0.15, width=128)
    texts = [f"say {n}" + "?" * (n % 5) + " and tell me all about the bears of the wood" for n in range(60)]
    rows = [json.dumps({"messages": [{"role": "user", "content": text}]}) for text in texts]
    (folder / "prompts.jsonl").write_text("\n".join(rows) + "\n")
    return folder


def policy_of(folder: Path, lora: LoraOptions | None) -> Policy:
    return load_policy(ModelOptions(path=str(folder / "model"), lora=lora)).eval()


def serving(
    folder: Path, lora: LoraOptions | None, port: int | None = None, bf16: bool = False
) -> AbstractContextManager[str]:
    """A server as `start_command` says; its url."""
    assert EXECUTABLE is not None
    command = start_command(policy_of(folder, lora), bf16)
    short = "--block-size 32"  # than the prompts, so that its prefix cache is in use
    return running(EXECUTABLE, command, folder / "server.log", port=port, options=short)


@pytest.fixture(scope="module")
def of_adapters(folder: Path) -> Iterator[str]:
    with serving(folder, LORA) as url:
        yield url


@pytest.fixture(scope="module")
def of_whole_weights(folder: Path) -> Iterator[str]:
    with serving(folder, None) as url:
        yield url


@pytest.fixture(scope="module")
def in_16_bits(folder: Path) -> Iterator[str]:
    with serving(folder, None, bf16=True) as url:
        yield url


def moved(policy: Policy, seed: int) -> None:
    """Each trained weight is another one."""
    with torch.no_grad():
        for weight in policy.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)), alpha=0.05)


@pytest.mark.parametrize("kind", ["of_adapters", "of_whole_weights"])
def test_it_says_what_the_trainer_reads_of_the_weights_of_now(
    folder: Path, tmp_path: Path, request: pytest.FixtureRequest, kind: str
) -> None:
    url, policy = request.getfixturevalue(kind), policy_of(folder, LORA if kind == "of_adapters" else None)
    format = ChatFormat.load(load_tokenizer(str(folder / "model")), "none", eos_token=tiny.END)
    rows = (folder / "prompts.jsonl").read_text().splitlines()[:12]
    prompts = [Prompt(messages=(Message(**json.loads(row)["messages"][0]),)) for row in rows]
    engine = VllmServer(url, tmp_path / "engine", Accelerator(cpu=True))
    draws = Draws(seed=3, update=7, samples=4, max_new_tokens=24)

    def asked(draws: Draws, shown: slice = slice(None)) -> tuple[list[Completion], float]:
        """The completions, and how far server and trainer differ, in nats a token."""
        completions = engine.rollout(policy, format, prompts[shown], draws)
        rollouts = make_rollouts(completions, format, 4096, min_new_tokens=draws.min_new_tokens)
        trainer, _ = read_policy(rollouts, policy, engine.accelerator, draws.temperature)
        said = engine_logps(completions, rollouts.mask)
        assert said is not None
        return completions, float((said - trainer).abs().sum() / rollouts.mask.sum())

    for seed in range(3):
        moved(policy, seed)
        if seed:
            assert asked(draws)[1] > 0.1  # still the weights before
        engine.refresh()
        assert asked(draws)[1] < 1e-5
    drawn, _ = asked(draws)
    ids = [completion.ids for completion in drawn]
    assert [c.ids for c in asked(draws)[0]] == ids
    assert [c.ids for c in asked(replace(draws, numbers=[3, 4]), slice(3, 5))[0]] == ids[12:20]
    assert all(len(set(ids[at : at + 4])) > 2 for at in range(0, len(ids), 4))
    others = {c.ids for c in asked(replace(draws, update=8))[0]}
    assert len(set(ids) & others) < len(ids) / 10  # some end at once
    assert {c.finished for c in drawn} == {True, False}
    for completion in drawn:
        assert (
            completion.finished == (completion.ids[-1] == format.end_id) and format.end_id not in completion.ids[:-1]
        )
        assert completion.finished or len(completion.ids) == 24
    for temperature in (0.6, 1.5):
        held, gap = asked(replace(draws, temperature=temperature, min_new_tokens=5))
        assert gap < 1e-5 and min(len(c.ids) for c in held) > 5


def settings_of(folder: Path, rollouts: dict[str, Any], lora: LoraOptions | None, **train: Any) -> Any:
    model = {} if lora is None else {"lora": {"r": lora.r}}
    train = {"steps": 4, "batch_size": 32, "learning_rate": 1e-2, "checkpoint_every": 1} | train
    changes: dict[str, Any] = {"advantage": "grpo", "samples": 4, "max_new_tokens": 12, "data": {"validation": 4}}
    return config(folder, model=model, train=train, rollouts={"engine": "vllm", **rollouts}, **changes)


@pytest.mark.parametrize("kind", ["of_adapters", "of_whole_weights"])
@pytest.mark.parametrize("correction", ["none", "truncated"])
def test_updates_learn_from_what_it_draws(
    folder: Path, tmp_path: Path, request: pytest.FixtureRequest, kind: str, correction: str
) -> None:
    url, (lora, rate) = request.getfixturevalue(kind), (LORA, 1e-2) if kind == "of_adapters" else (None, 2e-3)
    settings = settings_of(folder, {"correction": correction}, lora, learning_rate=rate)
    lines = updates(start(tmp_path / "run", settings, rollout_url=url))
    assert len(lines) == 4 and lines[-1]["objective/kl"] > 1
    for line in lines:
        assert line["sampling/logp_difference"] < 1e-5 and line["sampling/ratio"] == pytest.approx(1, abs=1e-5)
    assert lines[-1]["objective/score"] > lines[0]["objective/score"] + 0.1


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_whole_weights_in_16_bits_are_those_of_now(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_16_bits: str, precision: str
) -> None:
    """The trainer keeps its weights in float32 and computes in either precision."""
    monkeypatch.setattr(AcceleratorState, "_shared_state", {})  # another precision than the process has begun with
    settings = settings_of(folder, {}, None, learning_rate=2e-3)
    lines = updates(start(tmp_path / "run", settings, rollout_url=in_16_bits, precision=precision))
    assert len(lines) == 4 and lines[-1]["objective/kl"] > 1
    for line in lines:  # weights of the update before: above 1 nat
        assert 1e-3 < line["sampling/logp_difference"] < 0.05
        assert line["sampling/ratio"] == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("kind", ["of_adapters", "of_whole_weights"])
def test_it_draws_one_update_ahead(folder: Path, tmp_path: Path, request: pytest.FixtureRequest, kind: str) -> None:
    url, lora = request.getfixturevalue(kind), LORA if kind == "of_adapters" else None
    settings = settings_of(folder, {"ahead": 1}, lora, learning_rate=1e-3)
    lines = updates(start(tmp_path / "run", settings, rollout_url=url))
    assert [line["sampling/lag"] for line in lines] == [0, 1, 1, 1]
    assert lines[1]["objective/kl"] == pytest.approx(0, abs=1e-3)
    assert all(line["sampling/staleness"] > 1e-3 for line in lines[1:])


def test_another_base_is_refused(folder: Path, tmp_path: Path, of_adapters: str) -> None:
    tiny.checkpoint(tmp_path / "model", seed=1, width=128)
    (tmp_path / "prompts.jsonl").write_text((folder / "prompts.jsonl").read_text())
    with pytest.raises(EngineFailure, match=f"serves {folder}/model, and the policy's base is {tmp_path}/model"):
        start(tmp_path / "run", settings_of(tmp_path, {}, LORA), rollout_url=of_adapters)


TWO: dict[str, Any] = {
    "model": {"lora": {"r": LORA.r}}, "advantage": "grpo", "samples": 4, "max_new_tokens": 12,
    "data": {"validation": 4}, "rollouts": {"engine": "vllm"},
    "train": {"steps": 6, "batch_size": 36, "learning_rate": 1e-2, "checkpoint_every": 99, "evaluate_every": 99},
}  # fmt: skip


@pytest.mark.parametrize("ahead", [0, 1])
def test_two_processes_draw_what_one_does(folder: Path, tmp_path: Path, of_adapters: str, ahead: int) -> None:
    """Five prompts of each update are one rank's, four the other's."""
    changes = TWO | {"rollouts": {"engine": "vllm", "ahead": ahead}}
    run_served(folder, tmp_path / "one", of_adapters, changes)
    said = launch(folder, tmp_path / "two", of_adapters, changes).communicate(timeout=300)[1]
    lines = [line for line in read_metrics(tmp_path / "two/run") if "objective/kl" in line]
    assert len(lines) == 6 and lines[-1]["objective/kl"] > 1, said[-3000:]
    assert all(line["sampling/logp_difference"] < 1e-5 for line in lines[: 1 if ahead else 6])
    one, two = drawn(tmp_path / "one"), drawn(tmp_path / "two", 2)
    assert one[:2] == two[:2]  # validation, and the first update
    same = [a == b for x, y in zip(one, two, strict=True) for a, b in zip(x, y, strict=True)]
    assert sum(same) > 0.9 * len(same)  # the weights are equal to rounding


def test_two_processes_whose_server_is_killed_hear_of_it_and_go_on(folder: Path, tmp_path: Path) -> None:
    port, two = free_port(), tmp_path / "two"
    changes = TWO | {"train": {**TWO["train"], "steps": 12}}
    with serving(folder, LORA, port) as url:
        run = launch(folder, two, url, changes)
        while run.poll() is None and "objective/kl" not in (read_metrics(two / "run") or [{}])[-1]:
            time.sleep(0.1)
    said = run.communicate(timeout=120)[1]
    told = [(two / f"told-{rank}").read_text() for rank in range(2)]
    assert all(f"{url}/v1/" in one and "The server has to run" in one for one in told), said[-3000:]
    assert any((two / "run/checkpoints").iterdir()) and not (two / "run/model").exists()
    with serving(folder, LORA, port) as url:
        launch(folder, two, url, changes).communicate(timeout=300)
    lines = [line for line in read_metrics(two / "run") if "objective/kl" in line]
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert all(line["sampling/logp_difference"] < 1e-5 for line in lines)


def test_whole_weights_whose_head_it_would_not_reread_are_refused(folder: Path, tmp_path: Path) -> None:
    tiny.checkpoint(tmp_path / "model", width=128, tied=True)
    (tmp_path / "prompts.jsonl").write_text((folder / "prompts.jsonl").read_text())
    with serving(tmp_path, None) as url, pytest.raises(EngineFailure, match="a head that is tied to the embeddings"):
        start(tmp_path / "run", settings_of(tmp_path, {}, None), rollout_url=url)


def test_a_run_whose_server_is_killed_goes_on_with_another(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, port, drawing = settings_of(folder, {}, LORA), free_port(), VllmServer.drawing
    with ExitStack() as first, monkeypatch.context() as patched:
        url = first.enter_context(serving(folder, LORA, port))

        def third(self: VllmServer, policy: Any, format: Any, prompts: Any, draws: Draws) -> Any:
            """The server dies in the third update, before it is asked."""
            if draws.update == 2 and draws.samples == 4:
                first.close()
            return drawing(self, policy, format, prompts, draws)

        patched.setattr(VllmServer, "drawing", third)
        with pytest.raises(EngineFailure, match="no answer after 4 tries"):
            start(tmp_path / "run", settings, rollout_url=url)
    assert len(read_metrics(tmp_path / "run")) > 2 and not (tmp_path / "run" / "model").exists()
    with serving(folder, LORA, port) as url:
        lines = updates(start(tmp_path / "run", settings, rollout_url=url))
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(line["sampling/logp_difference"] < 1e-5 for line in lines)
