"""Shared = separate: a trie pass equals plain passes of the untouched model, values and gradients alike."""

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from alignkit import attention, selfcheck
from alignkit.attention import NAME, trie_attention
from alignkit.layout import trie_layout
from alignkit.packing import pack
from alignkit.policy import Policy
from alignkit.scorer import Scorer
from alignkit.selfcheck import sample_batch, why_not_tries
from alignkit.trie import TokenSequence, TrieBatch, paths
from alignkit.trunk import trunk_of

SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "mistral": {"sliding_window": 7},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "gemma2": {"head_dim": 16, "sliding_window": 7, "query_pre_attn_scalar": 16},
    "gemma3_text": {"head_dim": 16, "sliding_window": 7, "layer_types": ["sliding_attention", "full_attention"]},
    "phi3": {},
    "olmo2": {},
    "gpt_neox": {},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "granite": {"logits_scaling": 3.0, "attention_multiplier": 0.3},
    "cohere2": {"logit_scale": 0.3, "sliding_window": 7},
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64, "dropout": 0.0},
    "starcoder2": {"residual_dropout": 0.0, "embedding_dropout": 0.0},
    "qwen3_moe": {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "gpt_oss": {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 7},
}
REFUSED: dict[str, dict[str, Any]] = {
    "bloom": {"n_layer": 2, "n_head": 4},
    "mamba": {"state_size": 8},
    "qwen3_next": {
        "head_dim": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "llama4_text": {"head_dim": 16, "attention_chunk_size": 8, "num_local_experts": 2, "intermediate_size_mlp": 96},
    "phi3": {
        "original_max_position_embeddings": 20,
        "max_position_embeddings": 80,
        "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [3.0] * 8},
    },
}


def two_models(family: str, options: dict[str, Any], attention: str | None) -> tuple[PreTrainedModel, PreTrainedModel]:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SIZES, **options})
    kind = {"attn_implementation": attention} if attention else {}
    ours = AutoModelForCausalLM.from_config(copy.deepcopy(config), **kind).float().eval()
    plain = AutoModelForCausalLM.from_config(copy.deepcopy(config)).float().eval()
    plain.load_state_dict(ours.state_dict())
    return ours, plain


def separate_logps(plain: PreTrainedModel, batch: TrieBatch) -> Tensor:
    """[E] log-probabilities from one plain pass per sequence, in the batch's order of entries."""
    result = torch.zeros(len(batch.entry))
    for owner, path in enumerate(paths(batch)):
        logits = plain(input_ids=batch.ids[path][None], use_cache=False).logits[0].float().log_softmax(-1)
        mine = torch.nonzero(batch.owner == owner).flatten()
        result = result.index_put((mine,), logits[batch.positions[batch.source[mine]], batch.target[mine]])
    return result


def separate_scores(plain: PreTrainedModel, scorer: Scorer, batch: TrieBatch) -> Tensor:
    """[O + E] scores at each sequence's end, then values at each entry's source, from one plain pass per sequence."""
    ends = torch.zeros(len(batch.last))
    values = torch.zeros(len(batch.entry))
    for owner, path in enumerate(paths(batch)):
        states = trunk_of(plain)(input_ids=batch.ids[path][None], use_cache=False).last_hidden_state[0]
        scores = states @ scorer.head.weight.detach()[0] + scorer.head.bias.detach()
        mine = torch.nonzero(batch.owner == owner).flatten()
        ends = ends.index_put((torch.tensor([owner]),), scores[-1:])
        values = values.index_put((mine,), scores[batch.positions[batch.source[mine]]])
    return torch.cat([ends, values])


def assert_equal_passes(tries: bool, ours: PreTrainedModel, plain: PreTrainedModel) -> None:
    """Log-probabilities, scores and values, and the gradients of a random mixture of each."""
    batch = sample_batch()
    policy, scorer = Policy(ours, tries=tries), Scorer(ours, tries=tries)
    torch.nn.init.normal_(scorer.head.weight)
    assert_equal(policy(batch).logps, separate_logps(plain, batch), ours, plain)
    scores = torch.cat([scorer(batch, "last"), scorer(batch, "source")])
    assert_equal(scores, separate_scores(plain, scorer, batch), ours, plain)


def assert_equal(ours: Tensor, theirs: Tensor, model: PreTrainedModel, plain: PreTrainedModel) -> None:
    """Readings, and the gradients of a random mixture of them over the whole model."""
    model.zero_grad()
    plain.zero_grad()
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    direction = torch.randn(len(ours), generator=torch.Generator().manual_seed(3))
    (ours * direction).sum().backward()
    (theirs * direction).sum().backward()
    named = dict(plain.named_parameters())
    zero = torch.zeros(())
    pairs = [(p.grad if p.grad is not None else zero, named[n].grad) for n, p in model.named_parameters()]
    differences = torch.stack([(a - (zero if b is None else b)).norm() for a, b in pairs])
    norm = torch.stack([b.norm() for _, b in pairs if b is not None]).norm()
    assert norm > 0
    assert differences.norm() / norm <= 1e-5
    assert differences.max() / norm <= 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_shared_equals_separate_on_a_trie_of_depth_three(family: str) -> None:
    ours, plain = two_models(family, FAMILIES[family], NAME)
    assert why_not_tries(plain.config) is None
    assert_equal_passes(True, ours, plain)


@pytest.mark.parametrize("family", REFUSED)
def test_the_self_check_refuses_and_the_fallback_is_equal(family: str) -> None:
    ours, plain = two_models(family, REFUSED[family], None)
    assert why_not_tries(plain.config) is not None
    assert_equal_passes(False, ours, plain)


def test_gpt_oss_without_its_sinks_would_be_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = attention._explicit
    monkeypatch.setattr(attention, "_explicit", lambda *a: whole(*a[:-1], None))
    monkeypatch.setattr(selfcheck, "_VERDICTS", {})
    config = AutoConfig.for_model("gpt_oss", **{**SIZES, **FAMILIES["gpt_oss"]})
    assert "differ" in str(selfcheck.why_not_tries(config))


def test_attention_without_a_layout_or_with_an_unknown_keyword_raises() -> None:
    ours, _ = two_models("llama", {}, NAME)
    with pytest.raises(ValueError, match="needs a trie's layout"):
        ours(input_ids=torch.ones(1, 4, dtype=torch.int64))
    batch = sample_batch()
    q = torch.zeros(1, 2, len(batch.ids), 8)
    with pytest.raises(ValueError, match="does not implement position_bias"):
        trie_attention(ours, q, q, q, None, trie_layout=trie_layout(batch), position_bias=q)
    with pytest.raises(ValueError, match="without a mask"):
        trie_attention(ours, q, q, q, q, trie_layout=trie_layout(batch))


@pytest.mark.parametrize("softcap", [None, 50.0], ids=["sdpa", "explicit"])
def test_dropout_drops_that_share_of_the_weights_and_scales_the_rest(softcap: float | None) -> None:
    """The first token sees itself alone: its output is nothing, or its value over 1 - p."""
    batch = sample_batch()
    torch.manual_seed(0)
    heads, p = 512, 0.25
    q, k = torch.randn(2, 1, heads, len(batch.ids), 4).unbind()
    ones = torch.ones_like(q)
    layout = trie_layout(batch)
    out, _ = trie_attention(torch.nn.Identity(), q, k, ones, None, trie_layout=layout, dropout=p, softcap=softcap)
    kept = out[0, 0, :, 0]
    assert torch.equal(kept, torch.where(kept > 0, 1 / (1 - p), 0.0))
    assert (kept > 0).float().mean().item() == pytest.approx(1 - p, abs=0.08)  # 4 deviations
    # Of ones, what is kept is the sum of the kept weights over 1 - p: 1 in the mean.
    torch.testing.assert_close(out.mean((2, 3)), torch.ones(1, len(batch.ids)), atol=0.1, rtol=0)
    whole, _ = trie_attention(torch.nn.Identity(), q, k, ones, None, trie_layout=layout, softcap=softcap)
    torch.testing.assert_close(whole, torch.ones_like(whole))


def test_left_padded_batched_generation_equals_single_greedy() -> None:
    ours, plain = two_models("llama", {}, NAME)
    policy = Policy(ours)
    prompts = [[5, 6, 7, 8, 9], [11, 12], [20, 21, 22]]
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    with policy.plain() as model:
        together = model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False, pad_token_id=0)
    for row, prompt in zip(together, prompts, strict=True):
        alone = plain.generate(torch.tensor([prompt]), max_new_tokens=6, do_sample=False, pad_token_id=0)
        assert row[width:].tolist()[: alone.shape[1] - len(prompt)] == alone[0, len(prompt) :].tolist()
    assert ours.config._attn_implementation == NAME


def test_activation_checkpointing_and_unshared_rows_give_the_same() -> None:
    ours, plain = two_models("gemma2", FAMILIES["gemma2"], NAME)
    ours.gradient_checkpointing_enable({"use_reentrant": False})
    ours.train()
    assert_equal_passes(True, ours, plain)


def test_chunks_of_the_head_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, plain = two_models("cohere2", FAMILIES["cohere2"], NAME)
    monkeypatch.setattr("alignkit.policy.CHUNK", 128 * 7)
    assert_equal_passes(True, ours, plain)


def test_temperature_and_entropy_equal_the_distribution_they_describe() -> None:
    ours, plain = two_models("llama", {}, NAME)
    batch = sample_batch()
    read = Policy(ours)(batch, temperature=0.7, entropy=True)
    path = paths(batch)[0]
    log_distribution = (plain(input_ids=batch.ids[path][None]).logits[0] / 0.7).log_softmax(-1)
    mine = batch.owner == 0
    places = batch.positions[batch.source[mine]]
    assert torch.allclose(read.logps[mine], log_distribution[places, batch.target[mine]], atol=1e-5)
    expected = torch.distributions.Categorical(logits=log_distribution[places]).entropy()
    assert read.entropies is not None
    assert torch.allclose(read.entropies[mine], expected, atol=1e-5)


@pytest.mark.parametrize("chunk", [128 * 7, 2**26])
@pytest.mark.parametrize("family", ["llama", "gemma2", "granite", "cohere2"])
def test_barred_tokens_are_as_if_the_vocabulary_lacked_them(
    family: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: plain logits without the columns of what is barred; values, entropies and gradients."""
    ours, plain = two_models(family, FAMILIES[family], NAME)
    monkeypatch.setattr("alignkit.policy.CHUNK", chunk)
    ids, barred = list(range(5, 25)), (2, 77)
    early = [float(t < 8) for t in range(20)]
    batch = pack([TokenSequence(ids, [0.0] + [1.0] * 19, token_columns={"barred": early})], 64)[0]
    read = Policy(ours)(batch, temperature=0.7, entropy=True, barred=barred)
    logits = plain(input_ids=torch.tensor([ids])).logits[0, :-1] / 0.7
    left = [token for token in range(128) if token not in barred]
    logps, entropies = [], []
    for t, target in enumerate(ids[1:]):
        kept = left if early[t + 1] else list(range(128))
        distribution = torch.distributions.Categorical(logits=logits[t, kept])
        logps.append(distribution.log_prob(torch.tensor(kept.index(target))))
        entropies.append(distribution.entropy())
    assert read.entropies is not None
    torch.testing.assert_close(read.logps, torch.stack(logps), atol=1e-5, rtol=0)
    torch.testing.assert_close(read.entropies, torch.stack(entropies), atol=1e-5, rtol=0)
    (read.logps.sum() + read.entropies.square().sum()).backward()
    (torch.stack(logps).sum() + torch.stack(entropies).square().sum()).backward()
    expected = {name: parameter.grad for name, parameter in plain.named_parameters()}
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(
            parameter.grad, expected[name], atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
def test_shared_equals_separate_in_bf16_on_a_gpu(family: str) -> None:
    ours, plain = two_models(family, FAMILIES[family], NAME)
    batch = sample_batch()
    with torch.autocast("cuda", torch.bfloat16):
        shared = Policy(ours.cuda())(batch.to("cuda")).logps
        separate = separate_logps(plain.cuda(), batch.to("cuda"))
    assert (shared - separate.cuda()).abs().mean() < 2e-2


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("window", [None, 5])
def test_the_varlen_call_describes_the_same_attention(
    monkeypatch: pytest.MonkeyPatch, window: int | None, grouped: bool
) -> None:
    """What the CUDA kernel is given, read as its documentation says, is what the CPU computes."""

    def documented(
        q: Tensor, k: Tensor, v: Tensor, q_starts: Tensor, k_starts: Tensor, *longest: int, **how: Any
    ) -> Tensor:
        assert how.pop("enable_gqa", False) == grouped and (grouped or k.shape[1] == q.shape[1])
        assert longest == (int(q_starts.diff().max()), int(k_starts.diff().max()))
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        parts = []
        for (a, b), (c, d) in zip(pairwise(q_starts.tolist()), pairwise(k_starts.tolist()), strict=True):
            # Lower right: the last query sees up to the last key; window (w, 0): w keys before its own, none after.
            own = torch.arange(d - c - (b - a), d - c)[:, None]
            keys = torch.arange(d - c)
            left = how["window_size"][0]
            seen = (keys <= own) & ((left < 0) | (keys >= own - left))
            scores = torch.einsum("qhd,khd->hqk", q[a:b], k[c:d]) * how["scale"]
            parts.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v[c:d]))
        return torch.cat(parts)

    monkeypatch.setattr(attention, "varlen_attn", documented)
    monkeypatch.setattr(attention, "GROUPED", grouped)
    batch = sample_batch()
    layout = trie_layout(batch)
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, heads, len(batch.ids), 8) for heads in (4, 2, 2))
    ours = attention._varlen(layout, q, k, v, 0.3, window)
    expected, _ = trie_attention(None, q, k, v, None, scaling=0.3, sliding_window=window, trie_layout=layout)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_rows_of_one_long_and_many_short_sequences_use_several_kernel_calls() -> None:
    draw = torch.Generator().manual_seed(0)
    sizes = [400, 390, 5, 6, 7, 5, 6, 120]
    sequences = [
        TokenSequence(torch.randint(1, 128, (n,), generator=draw).tolist(), [0.0] + [1.0] * (n - 1)) for n in sizes
    ]
    (batch,) = pack(sequences, 2000)
    assert len(trie_layout(batch).groups) > 1
    ours, plain = two_models("qwen3", {"head_dim": 16}, NAME)
    with torch.no_grad():
        assert torch.allclose(Policy(ours)(batch).logps, separate_logps(plain, batch), atol=1e-5)
