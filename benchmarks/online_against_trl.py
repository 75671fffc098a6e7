"""Trains PPO, GRPO and RLOO with alignkit and with TRL on the same work, in alternation, and prints ratios.

    python -m pip install --no-deps --target FOLDER trl==1.12.0       (the last TRL whose PPO is kept up)
    python benchmarks/online_against_trl.py --trl-ppo FOLDER [--data FILE] [--works ppo ppo4 grpo rloo] [--rounds 3]

Model and data are those of `against_trl.py`; critic and reward model have the policy's size. PPO of ours is also run
with a critic on the policy's own trunk (`one trunk`), which TRL does not have. Prompts of at most 128 tokens, each
answered once in PPO, 8 times in GRPO, 4 times in RLOO; every answer is 48 tokens long on both sides; 32 answers an
update, one optimizer step in each pass over them, PPO with 1 pass and with 4 (`ppo4`). Float32, no activation
checkpointing, temperature 1, equal KL coefficients, KL where TRL has it: in the reward (PPO, RLOO), in the loss
(GRPO). PPO's reward is the reward model's score; that of GRPO and RLOO is the answer's length in characters. TRL
trains micro-batches of 8 and samples an update's answers in one batch; alignkit packs rows of `--token-budget`.

Each run is a process. Its phases: generation is the call that samples; scoring is everything between it and the
first training pass (rewards, log-probabilities, values, advantages); update is the rest. The training phase is
scoring and update. Memory is the peak of the process, and that peak above what it held after its imports.
TRL 1.12's PPO trainer runs on transformers 5.23 as it is.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from against_trl import make_inputs, peak_memory, spawned

from alignkit.provenance import provenance

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
BATCH = 32
"""Answers in one update."""
MICRO_BATCH = 8
"""TRL's, in its backward passes."""
PROMPT, ANSWER = 128, 48
"""Tokens: of the longest prompt, and of every answer."""
RATE = 3e-6
PHASES = ("generation", "scoring", "update")


@dataclass(frozen=True)
class Work:
    """What both sides do."""

    samples: int
    """Answers of each prompt."""
    kl: float
    epochs: int = 1
    """Passes over the answers of one update."""
    options: dict[str, Any] = field(default_factory=dict)
    """Ours, besides."""


ONE_TRUNK = "one trunk"
GRPO = {"advantage": "grpo", "average": "completion", "kl": {"coef": 0.04, "placement": "loss", "estimator": "k3"}}
WORKS = {
    "ppo": Work(samples=1, kl=0.05),
    "ppo4": Work(samples=1, kl=0.05, epochs=4),
    "grpo": Work(samples=8, kl=0.04, options=GRPO),
    "rloo": Work(samples=4, kl=0.05, options={"advantage": "rloo"}),
}


def characters(completions: list[Any], **_: Any) -> list[float]:
    """A reward that costs nothing: hundreds of characters in the answer."""
    return [len(completion[-1]["content"]) / 100 for completion in completions]


def make_prompts(data: Path | None, count: int, folder: Path) -> None:
    """Write the model, a reward model of its size, and `count` prompts as messages and as ids."""
    import torch  # noqa: PLC0415

    from alignkit.chat import ChatFormat  # noqa: PLC0415
    from alignkit.data.read import read  # noqa: PLC0415
    from alignkit.models import load_tokenizer  # noqa: PLC0415
    from alignkit.options.shared import ModelOptions  # noqa: PLC0415
    from alignkit.records import Comparison  # noqa: PLC0415
    from alignkit.scorer import load_scorer, save_scorer  # noqa: PLC0415

    make_inputs(data, max(256, 6 * count), folder)
    format = ChatFormat.load(load_tokenizer(str(folder)))
    found = [
        (c.prompt, format.prompt(c.prompt, c.tools)) for c in read(folder / "comparisons.jsonl", Comparison).records
    ]
    short = [(prompt, ids) for prompt, ids in found if len(ids) <= PROMPT][:count]
    if len(short) < count:
        raise SystemExit(f"only {len(short)} prompts of at most {PROMPT} tokens are there, {count} are needed")
    rows = [
        {"messages": [{"role": m.role, "content": m.content} for m in prompt], "ids": ids} for prompt, ids in short
    ]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    torch.manual_seed(1)
    save_scorer(load_scorer(ModelOptions(path=str(folder)), seed=1), format, folder / "reward")


@dataclass
class Phases:
    """A clock that runs in one phase at a time."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    now: str = "update"
    since: float = field(default_factory=time.perf_counter)

    def enter(self, phase: str) -> None:
        """End the phase that runs, and begin another."""
        import torch  # noqa: PLC0415

        if torch.cuda.is_available():
            torch.cuda.synchronize()
        ended = time.perf_counter()
        self.seconds[self.now] += ended - self.since
        self.now, self.since = phase, ended

    def around(self, function: Callable[..., Any], during: str, after: str) -> Callable[..., Any]:
        """The function, timed as one phase and followed by another."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            self.enter(during)
            try:
                return function(*args, **kwargs)
            finally:
                self.enter(after)

        return timed


def sides_of(name: str) -> list[str]:
    """Who does a work, in the order of a round."""
    return ["alignkit", *([ONE_TRUNK] if name.startswith("ppo") else []), "trl"]


def run_ours(name: str, updates: int, token_budget: int, folder: Path, roles: str = "separate") -> dict[str, Any]:
    """The ppo stage's own updates; their phases are those that it logs."""
    from alignkit.actors import load_actors  # noqa: PLC0415
    from alignkit.config import build  # noqa: PLC0415
    from alignkit.options.ppo import PpoConfig  # noqa: PLC0415
    from alignkit.options.shared import RuntimeOptions  # noqa: PLC0415
    from alignkit.runs import Run  # noqa: PLC0415
    from alignkit.stages.ppo import Ppo  # noqa: PLC0415
    from reward_models.functions import from_function  # noqa: PLC0415

    imported, work = peak_memory(), WORKS[name]
    learned = work.options.get("advantage") is None
    prompts = _rows(folder)[: updates * BATCH // work.samples]
    data = Path(tempfile.mkdtemp()) / "prompts.jsonl"
    data.write_text("".join(json.dumps({"messages": row["messages"]}) + "\n" for row in prompts), encoding="utf-8")
    settings: dict[str, Any] = {
        "model": {"path": str(folder)},
        "data": {"path": str(data), "validation": 0},
        "train": {"learning_rate": RATE, "batch_size": BATCH, "steps": updates, "warmup": 0.0},
        "reward": {"kind": "learned", "path": str(folder / "reward")} if learned else {"kind": "lexicon"},
        "kl": {"coef": work.kl},
        "samples": work.samples,
        "min_new_tokens": ANSWER,
        "max_new_tokens": ANSWER,
        "missing_eos": {"rule": "keep"},
        "ppo_epochs": work.epochs,
        "roles": roles,
    }
    config = build(PpoConfig, settings | work.options, "")
    runtime = RuntimeOptions(token_budget=token_budget, trackers=[])
    run = Run.open(data.parent / "run", "ppo", config, runtime)
    ppo = Ppo(config, load_actors(config, runtime, run, None if learned else from_function(characters, True)))
    started = time.perf_counter()
    logs = [ppo.step(number) for number in range(updates)]
    seconds = time.perf_counter() - started
    spent = {phase: sum(log[f"seconds/{phase}"] for log in logs) for phase in PHASES[:2]}
    assert all(log["completion/length"] == ANSWER for log in logs)
    return spent | {"update": seconds - sum(spent.values()), "above_imports": peak_memory() - imported}


def run_trl(name: str, updates: int, folder: Path) -> dict[str, Any]:
    """The same with TRL's trainer, timed from outside."""
    import torch  # noqa: PLC0415
    import trl  # noqa: PLC0415
    from datasets import Dataset  # noqa: PLC0415
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415

    work, phases = WORKS[name], Phases()
    common: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": MICRO_BATCH,
        "gradient_accumulation_steps": BATCH // MICRO_BATCH,
        "num_train_epochs": 1,
        "learning_rate": RATE,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "gradient_checkpointing": False,
        "bf16": False,
        "disable_tqdm": True,
        "temperature": 1.0,
    }
    rows = _rows(folder)[: updates * BATCH // work.samples]
    policy = partial(AutoModelForCausalLM.from_pretrained, folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    if name.startswith("ppo"):
        trainer, imported = _trl_ppo(work, common, rows, policy, tokenizer, folder, phases)
    else:
        kinds = {"grpo": (trl.GRPOConfig, trl.GRPOTrainer), "rloo": (trl.RLOOConfig, trl.RLOOTrainer)}
        config_class, trainer_class = kinds[name]
        imported = peak_memory()
        trainer_class._generate = phases.around(trainer_class._generate, "generation", "scoring")
        whole = trainer_class._generate_and_score_completions
        trainer_class._generate_and_score_completions = phases.around(whole, "generation", "update")
        own: dict[str, Any] = {"loss_type": "grpo"} if name == "grpo" else {}
        arguments = config_class(
            num_generations=work.samples,
            max_completion_length=ANSWER,
            generation_kwargs={"min_new_tokens": ANSWER},
            beta=work.kl,
            **common,
            **own,
        )
        trainer = trainer_class(
            model=policy(),
            reward_funcs=characters,
            args=arguments,
            train_dataset=Dataset.from_list([{"prompt": row["messages"]} for row in rows]),
            processing_class=tokenizer,
        )
    phases.since = time.perf_counter()
    trainer.train()
    phases.enter("update")
    assert trainer.state.global_step == updates, trainer.state.global_step
    return phases.seconds | {"above_imports": peak_memory() - imported, "trl": trl.__version__}


def _trl_ppo(
    work: Work,
    common: dict[str, Any],
    rows: list[dict[str, Any]],
    policy: Callable[..., Any],
    tokenizer: Any,
    folder: Path,
    phases: Phases,
) -> tuple[Any, int]:
    """TRL 1.12's PPO trainer, and the memory held after its import."""
    import torch  # noqa: PLC0415
    from datasets import Dataset  # noqa: PLC0415
    from transformers import AutoModelForSequenceClassification  # noqa: PLC0415
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer  # noqa: PLC0415

    imported = peak_memory()
    plain = ppo_trainer.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled() and phases.now == "scoring":
            phases.enter("update")
        return plain(*args, **kwargs)

    ppo_trainer.forward = forward
    ppo_trainer.batch_generation = phases.around(ppo_trainer.batch_generation, "generation", "scoring")
    scorer = partial(AutoModelForSequenceClassification.from_pretrained, folder / "reward", dtype=torch.float32)
    arguments = PPOConfig(
        num_ppo_epochs=work.epochs,
        response_length=ANSWER,
        kl_coef=work.kl,
        num_sample_generations=0,
        total_episodes=len(rows),
        **common,
    )
    trainer = PPOTrainer(
        args=arguments,
        processing_class=tokenizer,
        model=policy(),
        ref_model=policy(),
        reward_model=scorer(),
        value_model=scorer(),
        train_dataset=Dataset.from_list([{"input_ids": row["ids"]} for row in rows]),
    )
    return trainer, imported


def _rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "prompts.jsonl").read_text(encoding="utf-8").splitlines()]


def child(name: str, side: str, updates: int, token_budget: int, folder: Path) -> None:
    """Run one side of one work and print its figures."""
    if side == "trl":
        figures = run_trl(name, updates, folder)
    else:
        roles = "value_head" if side == ONE_TRUNK else "separate"
        figures = run_ours(name, updates, token_budget, folder, roles)
    figures["seconds"] = sum(figures[phase] for phase in PHASES)
    figures["training"] = figures["scoring"] + figures["update"]
    print("FIGURES " + json.dumps(figures | {"memory": peak_memory()}))


def main() -> None:
    """Run everything, print the tables, and write them as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-ppo", type=Path, help="the folder that holds TRL 1.12.0; left out: no PPO")
    parser.add_argument("--data", type=Path, help="a file of comparisons; left out: the built-in world")
    parser.add_argument("--works", nargs="+", default=list(WORKS), choices=list(WORKS))
    parser.add_argument("--updates", type=int, default=4, help=f"of {BATCH} answers each")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--token-budget", type=int, default=1024, help="alignkit's rows, in tokens")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        name, side, updates, token_budget, folder = arguments.child
        child(name, side, int(updates), int(token_budget), Path(folder))
        return
    works = [name for name in arguments.works if arguments.trl_ppo or not name.startswith("ppo")]
    folder = Path(tempfile.mkdtemp())
    make_prompts(arguments.data, arguments.updates * BATCH, folder)
    made_by = provenance("torch", "transformers", "trl", "accelerate")
    print(f"{made_by}; prompts of {statistics.mean(len(r['ids']) for r in _rows(folder)):.0f} tokens")
    results: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for name in works:
        results[name] = {side: [] for side in sides_of(name)}
        for _ in range(arguments.rounds):
            for side, runs in results[name].items():
                first = arguments.trl_ppo if side == "trl" and name.startswith("ppo") else None
                work = (name, side, arguments.updates, arguments.token_budget, folder)
                runs.append(spawned(__file__, *work, first_on_path=first))
        _print_table(name, results[name], arguments.updates * BATCH)
        if arguments.json:
            found = {
                **made_by,
                "data": arguments.data.name if arguments.data else "the built-in world",
                "episodes": arguments.updates * BATCH,
                "token_budget": arguments.token_budget,
                "results": results,
            }
            arguments.json.write_text(json.dumps(found, indent=1) + "\n")


def _print_table(name: str, sides: dict[str, list[dict[str, Any]]], episodes: int) -> None:
    columns = ("seconds", "generation", "training", "scoring", "update", "memory", "above_imports")
    medians = {
        side: {key: statistics.median(run[key] for run in runs) for key in columns} for side, runs in sides.items()
    }
    print(f"\n{name:14s} episodes/s " + "".join(f"{column:>14s}" for column in columns))
    for side, m in medians.items():
        shown = [m[key] / 1e6 if key in columns[-2:] else m[key] for key in columns]
        print(f"{side:14s} {episodes / m['seconds']:10.2f} " + "".join(f"{value:14.2f}" for value in shown))
    theirs = medians.pop("trl")
    for side, m in medians.items():
        ratios = "".join(f"{theirs[key] / m[key]:14.2f}" for key in columns)
        print(f"{'TRL / ' + side:25s} {ratios}", flush=True)


if __name__ == "__main__":
    main()
