"""SFT: TRL's loss and gradients; runs end to end, cut off, adapted, reloaded, moved to plain peft."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_cases import (
    TEMPLATE,
    assert_equal_gradients,
    assert_equal_runs,
    checkpoint,
    demonstrations,
    format_of,
    gradients,
    interrupted,
    message,
    messages,
    metrics,
    options_of,
    start,
    trl_arguments,
    weights,
    without_marks,
    write,
)
from datasets import Dataset
from peft import AutoPeftModelForCausalLM, LoraConfig
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel
from trl import SFTConfig as TrlConfig
from trl import SFTTrainer

from alignkit.accumulate import accumulate
from alignkit.adapters import merged_folder
from alignkit.batches import rows_of
from alignkit.config import InputError
from alignkit.contents import Contents
from alignkit.models import load_policy
from alignkit.options.sft import SftConfig
from alignkit.options.shared import LoraOptions, ModelOptions, RuntimeOptions
from alignkit.packing import pack
from alignkit.policy import Policy
from alignkit.stages import sft
from alignkit.talk import open_conversation
from alignkit.trie import TokenSequence


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("sft")
    checkpoint(made / "base")
    write(made / "data.jsonl", demonstrations(40))
    return made


def config(folder: Path, **changes: Any) -> SftConfig:
    return options_of(SftConfig, folder, changes, 5e-3, 8, 6)


@pytest.fixture(scope="module")
def finished(folder: Path) -> Any:
    return start(sft, folder / "whole", config(folder))


def fixed_turns(model: Path) -> list[TokenSequence]:
    """Fixed answers in the format of a model."""
    rows = demonstrations(5, seed=9)
    turns = format_of(model).turns_of([(messages(row["messages"]), None) for row in rows])
    return [turn for conversation in turns for turn in conversation]


@torch.no_grad()
def logps(policy: Policy, model: Path) -> Tensor:
    """Log-probabilities of the fixed answers."""
    return torch.cat([policy(batch).logps for batch in pack(fixed_turns(model), 4096)])


def trained(folder: Path, directory: Path, settings: SftConfig) -> tuple[Policy, Path]:
    """The policy as it stood in memory when it was saved, and its artifact."""
    kept: list[Policy] = []
    with pytest.MonkeyPatch.context() as patch:
        save = sft.save_policy
        patch.setattr(sft, "save_policy", lambda policy, *rest: (kept.append(policy), save(policy, *rest)))
        run = start(sft, directory, settings)
    return kept[0].eval(), run.model_dir


# ------------------------------------------------------------------------------------------------------------- TRL


def trl(folder: Path, model: Any, rows: list[dict[str, Any]], tmp_path: Path, **options: Any) -> SFTTrainer:
    """TRL's trainer on the rows, all of them one batch."""
    arguments = trl_arguments(TrlConfig, tmp_path, len(rows), **options)
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    # The marks let TRL find the assistant's tokens; they print nothing.
    answer = "{{ m.content + '<|im_end|>' }}"
    marked = "{% if m.role == 'assistant' %}{% generation %}X{% endgeneration %}{% else %}X{% endif %}"
    tokenizer.chat_template = TEMPLATE.replace(answer, marked.replace("X", answer))
    peft = LoraConfig(r=2, target_modules="all-linear") if options.get("max_steps") else None
    return SFTTrainer(model, arguments, None, Dataset.from_list(rows), None, tokenizer, peft_config=peft)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("turns", ["all", "last"])
def test_loss_and_gradients_are_those_of_trl(folder: Path, tmp_path: Path, family: str, turns: Any) -> None:
    base = checkpoint(tmp_path / "base", family, seed=3)
    rows = demonstrations(7, seed=1)
    theirs: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if turns == "all":
        trainer = trl(folder, theirs, rows, tmp_path, assistant_only_loss=True)
    else:
        pairs = [{"prompt": row["messages"][:-1], "completion": row["messages"][-1:]} for row in rows]
        trainer = trl(folder, theirs, pairs, tmp_path, completion_only_loss=True)
    batch = trainer.data_collator(list(trainer.train_dataset))
    loss: Any = trainer.compute_loss(theirs, batch)
    loss.backward()
    expected = gradients(theirs)

    policy = load_policy(ModelOptions(path=str(base)))
    examples = format_of(base).turns_of([(messages(row["messages"]), None) for row in rows], turns)
    assert any(len(example) > 1 for example in examples) == (turns == "all")
    for budget in (4096, 120):
        policy.zero_grad()
        batches = rows_of(examples, budget)
        assert (len(batches) > 2) == (budget == 120)
        ours = accumulate(policy, batches, sft.OBJECTIVE, backward=True)
        assert ours["loss"] == pytest.approx(loss.item(), rel=1e-6)
        assert_equal_gradients(gradients(policy.model), expected)


def test_an_adapter_of_trl_loads(folder: Path, tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    rows = demonstrations(4, seed=2)
    trainer = trl(folder, base, rows, tmp_path, max_steps=1, learning_rate=0.1, assistant_only_loss=True)
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    # Their tokenizer carries the marked template; ours is the base's.
    format_of(folder / "base").save(tmp_path / "adapter")
    plain: Any = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", dtype=torch.float32)
    turn = format_of(folder / "base").turns(messages(rows[0]["messages"]))[-1]
    with torch.no_grad():
        table = plain(torch.tensor([turn.ids])).logits[0].log_softmax(-1)
    expected = torch.stack([table[t - 1, turn.ids[t]] for t, weight in enumerate(turn.weights) if weight])
    before = load_policy(ModelOptions(path=str(folder / "base")))(pack([turn], 4096)[0]).logps
    for how in ("merge", "continue"):
        policy = load_policy(ModelOptions(path=str(tmp_path / "adapter"), adapter=how), trainable=False)
        found = policy(pack([turn], 4096)[0]).logps
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert (found - before).abs().max() > 1e-2


# ------------------------------------------------------------------------------------------------------ end to end


def test_a_run_learns_and_leaves_a_plain_checkpoint(finished: Any, folder: Path) -> None:
    lines = metrics(finished)
    validation = [line["validation/nll"] for line in lines if "validation/nll" in line]
    assert validation[-1] < validation[0] - 0.3
    assert finished.record.status == "done"
    assert finished.record.metrics["nll"] == validation[-1]
    assert finished.record.data[0]["rows"] == 40
    model: Any = AutoModelForCausalLM.from_pretrained(finished.model_dir)
    tokenizer = AutoTokenizer.from_pretrained(finished.model_dir)
    assert model.generation_config.eos_token_id[0] == tokenizer.convert_tokens_to_ids("<|im_end|>")
    # What the run reports is what the plain model says about the records that were held out.
    from_records = sft.load_examples
    held_out: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sft, "load_examples", lambda *a: (held_out.append(from_records(*a)), held_out[0])[1])
        start(sft, finished.directory.with_name("again"), config(folder, train={"steps": 1}))
    total, tokens = 0.0, 0
    for sequence in (s for example in held_out[0][1] for s in example):
        with torch.no_grad():
            table = model(torch.tensor([sequence.ids])).logits[0].log_softmax(-1)
        for t, weight in enumerate(sequence.weights):
            if weight:
                total, tokens = total - table[t - 1, sequence.ids[t]].item(), tokens + 1
    assert total / tokens == pytest.approx(validation[-1], rel=1e-5)


@pytest.mark.parametrize("steps", [1, 3])
def test_cut_off_and_resumed_is_uninterrupted(finished: Any, folder: Path, tmp_path: Path, steps: int) -> None:
    assert_equal_runs(interrupted(sft, tmp_path / "cut", config(folder), steps), finished)


def test_with_lora_and_dropout_too(folder: Path, tmp_path: Path) -> None:
    settings = config(folder, model={"lora": {"r": 2, "dropout": 0.2}})
    whole = start(sft, tmp_path / "whole", settings)
    assert_equal_runs(interrupted(sft, tmp_path / "cut", settings, 3), whole)


def test_the_token_budget_changes_nothing(finished: Any, folder: Path, tmp_path: Path) -> None:
    small = start(sft, tmp_path / "small", config(folder), RuntimeOptions(trackers=[], device="cpu", token_budget=110))
    whole = weights(finished.model_dir)
    for name, tensor in weights(small.model_dir).items():
        torch.testing.assert_close(tensor, whole[name], rtol=1e-4, atol=1e-5)


def test_a_budget_below_the_longest_sequence_is_named(folder: Path, tmp_path: Path) -> None:
    for over_long in ("error", "truncate_answer"):
        settings = config(folder, data={"over_long": over_long})
        with pytest.raises(InputError, match=r"runtime\.token_budget: 40 .* \d+ tokens"):
            start(sft, tmp_path / over_long, settings, RuntimeOptions(trackers=[], device="cpu", token_budget=40))


@pytest.mark.parametrize("stream", [False, True])
def test_a_conversation_that_is_too_long_is_named_by_its_row(folder: Path, tmp_path: Path, stream: bool) -> None:
    rows = demonstrations(12)
    rows[6]["messages"][-1]["content"] *= 99
    path = write(tmp_path / "data.jsonl", rows)
    settings = config(folder, data={"path": path, "validation": 2, "max_length": 128, "stream": stream})
    with pytest.raises(InputError, match=rf"^{path}:7: an example has \d+ tokens and data\.max_length is 128"):
        start(sft, tmp_path / "run", settings)


def test_a_checkpoint_without_a_tokenizer_is_named(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "base", tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*", "*.jinja"))
    with pytest.raises(InputError, match=r"model\.path: no tokenizer can be loaded from '.*bare'"):
        start(sft, tmp_path / "run", config(folder, model={"path": str(tmp_path / "bare")}))


def test_a_template_that_prints_no_answer_is_named(folder: Path, tmp_path: Path) -> None:
    template = tmp_path / "silent.jinja"
    template.write_text(TEMPLATE.replace("m.content", "(m.content if m.role == 'user' else '')"))
    with pytest.raises(InputError, match=r"silent\.jinja.*"):
        start(sft, tmp_path / "run", config(folder, model={"chat_template": str(template)}))


# -------------------------------------------------------------------------------------------------------- artifacts


@pytest.mark.parametrize("lora", [None, {"r": 2}], ids=["full", "lora"])
def test_an_artifact_reloads_to_the_same(folder: Path, tmp_path: Path, lora: Any) -> None:
    policy, artifact = trained(folder, tmp_path / "run", config(folder, model={"lora": lora}))
    expected = logps(policy, folder / "base")
    again = load_policy(ModelOptions(path=str(artifact)), trainable=False)
    torch.testing.assert_close(logps(again, folder / "base"), expected, rtol=1e-4, atol=1e-4)
    fresh = load_policy(ModelOptions(path=str(folder / "base")), trainable=False)
    assert (logps(fresh, folder / "base") - expected).abs().max() > 0.1


def test_an_adapter_over_four_bits_reloads_to_the_same(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    options = {"lora": {"r": 2}, "load_in_4bit": True}
    policy, artifact = trained(folder, tmp_path / "run", config(folder, model=options))
    assert any(p.dtype == torch.uint8 for p in policy.parameters())
    expected = logps(policy, folder / "base")
    model = ModelOptions(path=str(artifact), load_in_4bit=True, adapter="continue")
    torch.testing.assert_close(
        logps(load_policy(model, trainable=False), folder / "base"), expected, rtol=1e-4, atol=1e-4
    )
    # Merged, it stands on the base that was never 4-bit: near, but not the same.
    merged = logps(load_policy(ModelOptions(path=str(artifact)), trainable=False), folder / "base")
    fresh = logps(load_policy(ModelOptions(path=str(folder / "base")), trainable=False), folder / "base")
    assert 1e-4 < (merged - expected).abs().mean() < (fresh - expected).abs().mean()


def test_our_adapter_loads_in_plain_peft(folder: Path, tmp_path: Path) -> None:
    policy, artifact = trained(folder, tmp_path / "run", config(folder, model={"lora": {"r": 2}}))
    plain: Any = AutoPeftModelForCausalLM.from_pretrained(artifact, dtype=torch.float32)
    sequence = format_of(folder / "base").turns(messages(demonstrations(1, seed=5)[0]["messages"]))[-1]
    ids = torch.tensor([sequence.ids])
    with torch.no_grad(), policy.plain() as model:
        torch.testing.assert_close(plain(ids).logits, model(ids).logits, rtol=1e-5, atol=1e-5)


def test_a_base_without_a_template_learns_the_one_named(folder: Path, tmp_path: Path) -> None:
    checkpoint(tmp_path / "base", chat=False)
    settings = config(folder, model={"path": str(tmp_path / "base"), "chat_template": "chatml"})
    run = start(sft, tmp_path / "run", settings)
    assert "<|im_start|>" in AutoTokenizer.from_pretrained(run.model_dir).chat_template
    bare = config(folder, model={"path": str(tmp_path / "base")})
    with pytest.raises(InputError, match="chat_template"):
        start(sft, tmp_path / "bare", bare)


@pytest.mark.parametrize("family", ["llama", "qwen3"], ids=["two tables", "tied"])
@pytest.mark.parametrize("four_bit", [False, True], ids=["float32", "4bit"])
def test_an_adapter_brings_the_tokens_that_its_base_lacks(
    folder: Path, tmp_path: Path, family: str, four_bit: bool
) -> None:
    """The base has no rows for them either: the adapter's artifact alone holds what they were trained to."""
    base = without_marks(checkpoint(tmp_path / "base", family, chat=False))
    lora = {"lora": {"r": 2}, "load_in_4bit": four_bit}
    options = {"path": str(base), "chat_template": "chatml"} | lora
    policy, artifact = trained(folder, tmp_path / "run", config(folder, model=options))
    turns = fixed_turns(artifact)
    assert {300, 301} <= {token for turn in turns for token in turn.ids}
    rows = policy.model.get_input_embeddings()
    trained_rows = rows.token_adapter.trainable_tokens_delta["default"]
    assert (trained_rows - rows.token_adapter.base_layer.weight[300:]).abs().max() > 1e-3
    expected = logps(policy, artifact)
    near = {"rtol": 1e-4, "atol": 1e-4}
    again = load_policy(ModelOptions(path=str(artifact), adapter="continue", load_in_4bit=four_bit), trainable=False)
    torch.testing.assert_close(logps(again, artifact), expected, **near)
    if not four_bit:
        merged = load_policy(ModelOptions(path=str(artifact)), trainable=False)
        torch.testing.assert_close(logps(merged, artifact), expected, **near)
        plain: Any = AutoPeftModelForCausalLM.from_pretrained(artifact, dtype=torch.float32)
        ids = torch.tensor([turns[0].ids])
        with torch.no_grad(), policy.plain() as model:
            torch.testing.assert_close(plain(ids).logits, model(ids).logits, **near)
    # A second adapter goes on from the first, merged into its base with the new rows.
    start(sft, tmp_path / "further", config(folder, model={"path": str(artifact)} | lora))


def test_a_message_counts_by_its_weight(folder: Path) -> None:
    format = format_of(folder / "base")
    policy = load_policy(ModelOptions(path=str(folder / "base")))
    one, other = (messages(demonstrations(1, seed=n)[0]["messages"]) for n in (5, 77))

    def nll(*conversations: Any) -> float:
        examples = format.turns_of([(conversation, None) for conversation in conversations], "last")
        return accumulate(policy, rows_of(examples, 4096), sft.OBJECTIVE, backward=False)["nll"]

    n, m = (sum(format.turns(conversation, which="last")[0].weights) for conversation in (one, other))
    halved = (*one[:-1], one[-1].model_copy(update={"weight": 0.5}))
    assert nll(halved, other) == pytest.approx((0.5 * n * nll(one) + m * nll(other)) / (0.5 * n + m), rel=1e-5)


def test_lora_that_fits_no_module_is_named(folder: Path, tmp_path: Path) -> None:
    for targets in (["qproj"], []):
        with pytest.raises(
            InputError, match=r"model\.lora\.target_modules: \[.*\] fits no module; .* called .*q_proj"
        ):
            start(sft, tmp_path / "run", config(folder, model={"lora": {"target_modules": targets}}))


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_lora_on_a_table_of_tokens_is_refused_where_it_is_the_head_too_or_grows(tmp_path: Path, target: str) -> None:
    lora = LoraOptions(r=2, target_modules=["q_proj", target])
    tied, own = checkpoint(tmp_path / "tied", "qwen3"), checkpoint(tmp_path / "own")
    with pytest.raises(InputError, match=r"target_modules: .* which are one here: it cannot be merged"):
        load_policy(ModelOptions(path=str(tied), lora=lora))
    assert load_policy(ModelOptions(path=str(own), lora=lora)).adapted is not None
    new = {"path": str(without_marks(own)), "chat_template": "chatml", "lora": lora.model_dump()}
    data = {"path": write(tmp_path / "data.jsonl", demonstrations(12))}
    settings = options_of(SftConfig, tmp_path, {"model": new, "data": data}, 5e-3, 8, 1)
    with pytest.raises(InputError, match=r"target_modules: .* gets new tokens; leave it out"):
        start(sft, tmp_path / "run", settings)


def test_an_adapter_goes_on_with_the_tokens_it_knows(folder: Path, tmp_path: Path) -> None:
    base = without_marks(checkpoint(tmp_path / "base"))
    plain = {"path": str(base), "chat_template": "none", "lora": {}}
    first = start(sft, tmp_path / "first", config(folder, model=plain, train={"steps": 1}))
    (first.model_dir / "chat_format.json").unlink()
    more = {"path": str(first.model_dir), "adapter": "continue", "chat_template": "chatml"}
    with pytest.raises(InputError, match=r"model\.adapter: continue cannot train rows for \d tokens"):
        start(sft, tmp_path / "second", config(folder, model=more))


def test_a_merged_adapter_is_whole_and_that_of_its_base(folder: Path, tmp_path: Path) -> None:
    """A kill leaves nothing that is taken for it; another base in the same place makes it anew."""
    base = checkpoint(tmp_path / "base")
    run = start(sft, tmp_path / "run", config(folder, model={"path": str(base), "lora": {}}, train={"steps": 1}))
    before, id = merged_folder(str(run.model_dir)), Contents().of(run.model_dir)
    whole = AutoModelForCausalLM.from_pretrained(before).state_dict()
    shutil.rmtree(before)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("alignkit.adapters.Path.rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            merged_folder(str(run.model_dir))
    assert not before.exists() and Contents().of(run.model_dir) == id
    again = AutoModelForCausalLM.from_pretrained(merged_folder(str(run.model_dir))).state_dict()
    assert all(torch.equal(again[name], value) for name, value in whole.items())
    made = before.stat().st_mtime_ns
    assert merged_folder(str(run.model_dir)).stat().st_mtime_ns == made
    checkpoint(tmp_path / "base", seed=9)
    other = AutoModelForCausalLM.from_pretrained(merged_folder(str(run.model_dir))).state_dict()
    table = AutoModelForCausalLM.from_pretrained(base).get_input_embeddings().weight
    assert torch.equal(other["model.embed_tokens.weight"], table)


def test_a_sequence_beyond_the_models_positions_is_named(folder: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    small = GPT2Config(vocab_size=300, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(small).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    rows = [*demonstrations(9), {"messages": [message("user", "who"), message("assistant", "the cat " * 40)]}]
    write(tmp_path / "long.jsonl", rows)
    settings = config(folder, model={"path": str(tmp_path / "gpt2")}, data={"path": str(tmp_path / "long.jsonl")})
    with pytest.raises(InputError, match=r"data\.max_length: a sequence has \d+ tokens, .* knows 64 positions"):
        start(sft, tmp_path / "run", settings)
    conversation = open_conversation(str(tmp_path / "gpt2"), None, max_new_tokens=60, temperature=1.0, seed=0)
    with pytest.raises(InputError, match=r"leave no room for 60 new ones in the model's 64 positions"):
        conversation.answer("who knows")
