"""Trains SFT, reward model and DPO with alignkit and with TRL on the same work, in alternation, and prints ratios.

    python benchmarks/against_trl.py [--data FILE] [--stages sft reward dpo] [--rounds 3] [--rows 256]

Model: Qwen3 architecture, 6 layers, width 256, 6.8 M parameters, random weights. Data: comparisons in any form that
alignkit reads (HH-RLHF); without --data, the short answers of the built-in world. ChatML, an 8,192-token byte-level
BPE trained on them. Each run is a process, so that peak memory is its own; what is timed is the whole training
(packing or collation, forward, backward, optimizer), after tokenization. Tokens are those of the sequences trained on,
padding not counted and shared prefixes counted each time, for both sides. The variants of ours take one gain away
each: sharing, packing, the head on sources only, the library that computes large products (of oneDNN and torch's own
the one that alignkit does not choose on this CPU). The first three of them and TRL's defaults (checkpointing on) are
run once, the rest in every round.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alignkit.provenance import provenance

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
BATCH = 8
LENGTH = 2048
MEASURED = ("alignkit", "other products", "trl", "trl best")
"""What is run in every round; the others are run once."""
VARIANTS = {
    "sft": ["alignkit", "no sharing", "no packing", "full head", "other products", "trl", "trl best", "trl defaults"],
    "reward": ["alignkit", "no sharing", "no packing", "other products", "trl", "trl defaults"],
    "dpo": ["alignkit", "no sharing", "no packing", "full head", "other products", "trl", "trl best", "trl defaults"],
}


def make_inputs(data: Path | None, rows: int, folder: Path) -> None:
    """Write the tokenizer, the model and the comparisons that every run reads."""
    import torch  # noqa: PLC0415
    from transformers import Qwen3Config, Qwen3ForCausalLM  # noqa: PLC0415

    from alignkit.chat import ChatFormat  # noqa: PLC0415
    from alignkit.data.read import read  # noqa: PLC0415
    from alignkit.data.tokenizer import train_tokenizer  # noqa: PLC0415
    from alignkit.data.world import generate  # noqa: PLC0415
    from alignkit.prepare import ranked_sequences  # noqa: PLC0415
    from alignkit.records import Comparison  # noqa: PLC0415

    if data is None:
        found: list[Any] = [_ends(comparison) for comparison in generate("comparisons", rows, 0)]
    else:
        found = read(data, Comparison, on_invalid="skip").records[:rows]
    texts = [m.content for c in found for m in (*c.prompt, *(m for r in c.responses for m in r))]
    tokenizer = train_tokenizer(texts, "bpe", 8192)
    format = ChatFormat.load(tokenizer, "chatml")
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=8192,
        hidden_size=256,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        intermediate_size=704,
        tie_word_embeddings=True,
        max_position_embeddings=LENGTH,
        pad_token_id=format.pad_id,
        eos_token_id=format.end_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.pad_token = tokenizer.pad_token or "<|pad|>"
    format.save(folder)
    lines = [c.model_dump_json() for c in found]
    (folder / "comparisons.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    lengths = [{s.columns["rank"]: len(s.ids) for s in example} for example in ranked_sequences(format, found)]
    best, all_ = sum(ranks[1] for ranks in lengths), sum(sum(ranks.values()) for ranks in lengths)
    (folder / "tokens.json").write_text(json.dumps({"sft": best, "reward": all_, "dpo": all_}))


def _ends(comparison: Any) -> Any:
    """The best and the worst response of a ranking: TRL trains on pairs."""
    ends = [comparison.ranks.index(rank) for rank in (min(comparison.ranks), max(comparison.ranks))]
    return comparison.model_copy(
        update={"responses": tuple(comparison.responses[end] for end in ends), "ranks": (1, 2), "margins": None}
    )


def run_ours(stage: str, variant: str, folder: Path) -> dict[str, Any]:
    """One training of ours through the stage's own objective and `fit`."""
    import alignkit.batches  # noqa: PLC0415
    import alignkit.products  # noqa: PLC0415
    from alignkit.chat import ChatFormat  # noqa: PLC0415
    from alignkit.data.read import read  # noqa: PLC0415
    from alignkit.loop import fit, make_accelerator  # noqa: PLC0415
    from alignkit.models import load_policy, load_tokenizer  # noqa: PLC0415
    from alignkit.options.dpo import DpoConfig  # noqa: PLC0415
    from alignkit.options.mixture import StreamedDataOptions  # noqa: PLC0415
    from alignkit.options.shared import ModelOptions, RuntimeOptions, TrainOptions  # noqa: PLC0415
    from alignkit.pairs import preference_objective  # noqa: PLC0415
    from alignkit.prepare import ranked_sequences  # noqa: PLC0415
    from alignkit.records import Comparison  # noqa: PLC0415
    from alignkit.reference import with_reference  # noqa: PLC0415
    from alignkit.runs import Run  # noqa: PLC0415
    from alignkit.scorer import load_scorer  # noqa: PLC0415
    from alignkit.stages import reward, sft  # noqa: PLC0415

    runtime = RuntimeOptions(token_budget=16384, trackers=[])
    options = TrainOptions(learning_rate=1e-4, batch_size=BATCH, schedule="linear", warmup=0.0, checkpoint_every=10**6)
    model = ModelOptions(path=str(folder))
    records = read(folder / "comparisons.jsonl", Comparison).records
    format = ChatFormat.load(load_tokenizer(str(folder)))
    examples: list[Any] = ranked_sequences(format, records)
    if stage == "sft":
        examples = [format.completions([(c.prompt, c.responses[c.ranks.index(1)], c.tools)]) for c in records]
    if variant == "other products":
        chosen = alignkit.products.onednn_is_faster()
        alignkit.products.onednn_is_faster = lambda: not chosen
    accelerator = make_accelerator(runtime)
    module: Any = load_scorer(model) if stage == "reward" else load_policy(model)
    config = DpoConfig(model=model, data=StreamedDataOptions(path="x"))
    objective = {
        "sft": sft.OBJECTIVE,
        "reward": reward.ranking_objective(0.0, 0.0),
        "dpo": preference_objective(config),
    }[stage]
    whole = alignkit.batches.pack
    if variant == "no sharing":
        alignkit.batches.pack = lambda sequences, budget: whole(sequences, budget, share=False)
    if variant == "no packing":
        alignkit.batches.pack = lambda sequences, budget: _row_per_group(whole, sequences, budget)
    if variant == "full head":
        _head_on_all(module)
    losses: list[float] = []
    original, run = Run.log, Run.open(Path(tempfile.mkdtemp()) / stage, stage, config, runtime)
    Run.log = lambda self, step, metrics: (losses.append(metrics.get("loss", 0.0)), original(self, step, metrics))
    started = time.perf_counter()
    if stage == "dpo":
        examples = with_reference(module, [examples], runtime.token_budget, accelerator, run)[0]
    fit(module, examples, [], objective, options, runtime, run, 0, accelerator)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "loss": losses[-1]}


def _row_per_group(pack: Callable[..., Any], sequences: Any, budget: int) -> list[Any]:
    groups: dict[int, list[Any]] = {}
    for sequence in sequences:
        groups.setdefault(sequence.group, []).append(sequence)
    return [row for members in groups.values() for row in pack(members, budget)]


def _head_on_all(policy: Any) -> None:
    """Log-probabilities from logits at every token of the row, as a plain forward pass makes them."""
    from alignkit.attention import KEYWORD  # noqa: PLC0415
    from alignkit.layout import trie_layout  # noqa: PLC0415
    from alignkit.policy import TokenLogProbs  # noqa: PLC0415

    def forward(batch: Any, **_: Any) -> Any:
        layout = {KEYWORD: trie_layout(batch)}
        logits = policy.model(input_ids=batch.ids[None], position_ids=batch.positions[None], use_cache=False, **layout)
        chosen = logits.logits[0].float().log_softmax(-1)[batch.source, batch.target]
        return TokenLogProbs(chosen, None)

    policy.forward = forward


def run_trl(stage: str, variant: str, folder: Path) -> dict[str, Any]:
    """One training with TRL's trainer on the same rows."""
    import trl  # noqa: PLC0415
    from datasets import Dataset  # noqa: PLC0415
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer  # noqa: PLC0415

    rows = [json.loads(line) for line in (folder / "comparisons.jsonl").read_text(encoding="utf-8").splitlines()]

    def plain(messages: list[dict[str, Any]]) -> list[dict[str, str]]:
        return [{"role": m["role"], "content": m["content"]} for m in messages]

    best = [plain(r["responses"][r["ranks"].index(1)]) for r in rows]
    columns: dict[str, list[Any]] = {"prompt": [plain(r["prompt"]) for r in rows]}
    columns |= {"completion": best} if stage == "sft" else {"chosen": best}
    if stage != "sft":
        columns["rejected"] = [plain(r["responses"][r["ranks"].index(max(r["ranks"]))]) for r in rows]
    common: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": BATCH,
        "num_train_epochs": 1,
        "learning_rate": 1e-4,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "max_length": LENGTH,
        "gradient_checkpointing": variant == "trl defaults",
        "bf16": False,
        "disable_tqdm": True,
    }
    if variant == "trl best":
        common |= {"packing": True, "max_length": 512} if stage == "sft" else {"precompute_ref_log_probs": True}
    kind = {"sft": (trl.SFTConfig, trl.SFTTrainer), "reward": (trl.RewardConfig, trl.RewardTrainer)}
    config_class, trainer_class = kind.get(stage, (trl.DPOConfig, trl.DPOTrainer))
    loader = AutoModelForSequenceClassification if stage == "reward" else AutoModelForCausalLM
    extra = {"num_labels": 1} if stage == "reward" else {}
    trainer = trainer_class(
        model=loader.from_pretrained(folder, dtype="float32", **extra),
        args=config_class(**common),
        train_dataset=Dataset.from_dict(columns),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    history = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"seconds": seconds, "loss": history[-1]}


def child(stage: str, variant: str, folder: Path) -> None:
    """Run one variant and print its figures."""
    figures = (run_trl if variant.startswith("trl") else run_ours)(stage, variant, folder)
    print("FIGURES " + json.dumps(figures | {"memory": peak_memory()}))


def peak_memory() -> int:
    """Bytes: the largest that CUDA's allocations were, or this process."""
    import torch  # noqa: PLC0415

    from alignkit.progress import peak_memory_bytes  # noqa: PLC0415

    return peak_memory_bytes(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def main() -> None:
    """Run everything, print the tables, and write them as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a file of comparisons; left out: the built-in world")
    parser.add_argument("--stages", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--variants", nargs="+", help="leave the others out")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        stage, variant, folder = arguments.child
        child(stage, variant, Path(folder))
        return
    folder = Path(tempfile.mkdtemp())
    make_inputs(arguments.data, arguments.rows, folder)
    made_by = provenance("torch", "transformers", "trl", "accelerate")
    print(made_by)
    tokens = json.loads((folder / "tokens.json").read_text())
    results: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for stage in arguments.stages:
        chosen = [v for v in VARIANTS[stage] if not arguments.variants or v in arguments.variants]
        results[stage] = {variant: [] for variant in chosen}
        for number in range(arguments.rounds):
            for variant in chosen:
                if number == 0 or variant in MEASURED:
                    results[stage][variant].append(spawned(__file__, stage, variant, folder))
        _print_table(stage, results[stage], arguments.rows, tokens[stage])
        if arguments.json:
            found = {
                **made_by,
                "data": arguments.data.name if arguments.data else "the built-in world",
                "rows": arguments.rows,
                "tokens": tokens,
                "results": results,
            }
            arguments.json.write_text(json.dumps(found, indent=1) + "\n")


def spawned(script: str, *work: object, first_on_path: Path | None = None) -> dict[str, Any]:
    """The figures that `script --child WORK` prints, as a process of its own."""
    environment = dict(os.environ)
    if first_on_path is not None:
        environment["PYTHONPATH"] = os.pathsep.join([str(first_on_path), environment.get("PYTHONPATH", "")])
    command = [sys.executable, script, "--child", *map(str, work)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith("FIGURES ")]
    if not lines:
        raise RuntimeError(f"{' '.join(map(str, work))}: {done.stderr[-3000:]}")
    return json.loads(lines[-1].removeprefix("FIGURES "))


def _print_table(stage: str, variants: dict[str, list[dict[str, Any]]], rows: int, tokens: int) -> None:
    print(f"\n{stage:14s} examples/s   tokens/s   peak MB   last loss   ours is faster by   memory ours / theirs")
    medians = {
        variant: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        for variant, runs in variants.items()
    }
    ours = medians.get("alignkit")
    for variant, m in medians.items():
        ratio = f"{m['seconds'] / ours['seconds']:17.2f} x   {ours['memory'] / m['memory']:19.2f}" if ours else ""
        rate = f"{rows / m['seconds']:10.2f}   {tokens / m['seconds']:8.0f}"
        print(f"{variant:14s} {rate}   {m['memory'] / 1e6:7.0f}   {m['loss']:9.4f}   {ratio}")


if __name__ == "__main__":
    main()
