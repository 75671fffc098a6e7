"""Tries an architecture on a random shrink of it: do tries equal separate passes? Knows no architecture by name."""

import copy
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from alignkit.attention import NAME
from alignkit.packing import pack
from alignkit.trie import TokenSequence, TrieBatch, paths
from alignkit.trunk import run_trunk, trunk_of

TOLERANCE = 1e-4
# The shrink: what bounds each size, whatever a family calls it.
WIDTHS = ("hidden_size", "d_model", "n_embd", "word_embed_proj_dim", "dim", "embedding_size")
INNER = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "d_ff", "intermediate_size_mlp")
INNER_EXPERTS = ("moe_intermediate_size", "shared_expert_intermediate_size")
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
KEY_HEADS = ("num_key_value_heads", "num_kv_heads")
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
CHOSEN_EXPERTS = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "top_k_experts")
HEAD_WIDTHS = ("head_dim", "global_head_dim", "linear_key_head_dim", "linear_value_head_dim", "time_step_rank")
WINDOWS = ("sliding_window", "attention_chunk_size", "window_size")
POSITIONS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")
DROPOUTS = (
    *("resid_pdrop", "embd_pdrop", "attn_pdrop", "dropout", "attention_dropout", "hidden_dropout"),
    *("residual_dropout", "embedding_dropout", "activation_dropout"),
)
LENGTH = 40


def shrink(config: PretrainedConfig) -> PretrainedConfig:
    """A copy of the configuration with one layer of each type, width <= 64, <= 4 heads and experts, 128 tokens."""
    small = copy.deepcopy(config.get_text_config(decoder=True))
    heads = min(4, _first(small, HEADS) or 4)
    key_heads = _first(small, KEY_HEADS)
    bounds: dict[str, int] = dict.fromkeys(WIDTHS, 64) | dict.fromkeys((*INNER, *INNER_EXPERTS), 64)
    bounds |= dict.fromkeys(HEADS, heads) | dict.fromkeys(EXPERTS, 4) | dict.fromkeys(CHOSEN_EXPERTS, 2)
    bounds |= dict.fromkeys(HEAD_WIDTHS, 16) | dict.fromkeys(WINDOWS, 8) | dict.fromkeys(POSITIONS, LENGTH)
    bounds |= {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "vocab_size": 128}
    bounds |= {"vocab_size_per_layer_input": 128, "hidden_size_per_layer_input": 16, "num_kv_shared_layers": 0}
    if key_heads:
        bounds |= dict.fromkeys(KEY_HEADS, heads if key_heads == _first(small, HEADS) else min(2, key_heads))
    known = set(small.to_dict())
    for name, bound in bounds.items():
        value = getattr(small, name, None) if name in known else None
        if isinstance(value, int) and not isinstance(value, bool) and value > bound:
            setattr(small, name, bound)
    for name in known:
        if name.endswith("_token_id"):
            setattr(small, name, 0)
        if name in ("vocab_size", "vocab_size_per_layer_input"):
            setattr(small, name, 128)  # a smaller one too: the sample batch draws from 128 tokens
    for name in DROPOUTS:
        if name in known:
            setattr(small, name, 0.0)
    _shrink_layers(small)
    _shrink_rope(small)
    return small


def _first(config: PretrainedConfig, names: tuple[str, ...]) -> int | None:
    return next((v for n in names if isinstance(v := getattr(config, n, None), int)), None)


def _shrink_layers(config: PretrainedConfig) -> None:
    """One layer of each kind; two where all are alike."""
    types: list[str] | None = vars(config).get("layer_types")
    kept = list(dict.fromkeys(types)) if types else []
    count = len(kept) if len(kept) > 1 else 2
    for name in LAYERS:
        if isinstance(getattr(config, name, None), int):
            setattr(config, name, count)
    if types:
        config.layer_types = kept if len(kept) > 1 else types[:1] * 2
    for name, value in list(vars(config).items()):
        if name != "layer_types" and isinstance(value, list) and types and len(value) == len(types):
            setattr(config, name, value[:count])


def _shrink_rope(config: PretrainedConfig) -> None:
    """Shrink the lengths at which a rotary embedding changes its scaling, so that the check crosses them."""
    rope: Any = getattr(config, "rope_parameters", None)
    if not isinstance(rope, dict):
        return
    for parameters in [rope, *(v for v in rope.values() if isinstance(v, dict))]:
        if "original_max_position_embeddings" in parameters:
            parameters["original_max_position_embeddings"] = LENGTH // 2
        if parameters.get("rope_type") == "dynamic":
            config.max_position_embeddings = LENGTH // 2
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        for name in ("short_factor", "long_factor"):
            if name in parameters:
                half = int(width * parameters.get("partial_rotary_factor", 1.0)) // 2
                parameters[name] = parameters[name][:half]
    if getattr(config, "original_max_position_embeddings", None):
        config.original_max_position_embeddings = LENGTH // 2


def why_not_tries(config: PretrainedConfig) -> str | None:
    """None where tries equal separate passes on this architecture, forward and gradients; else the reason in a line.

    The caller's random numbers are left as they were.
    """
    key = config.to_json_string(use_diff=False)
    if key not in _VERDICTS:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            _VERDICTS[key] = _check(config)
    return _VERDICTS[key]


_VERDICTS: dict[str, str | None] = {}


def _check(config: PretrainedConfig) -> str | None:
    try:
        small = shrink(config)
        shared = AutoModelForCausalLM.from_config(copy.deepcopy(small), attn_implementation=NAME).float().eval()
        plain = AutoModelForCausalLM.from_config(copy.deepcopy(small)).float().eval()
        plain.load_state_dict(shared.state_dict())
        difference = compare(shared, plain)
    except Exception as error:  # whatever an architecture does not bear, plain passes do
        return f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return None if difference <= TOLERANCE else f"shared and separate passes differ by {difference:.1e} (relative)"


def sample_batch() -> TrieBatch:
    """One row of depth 3: two prompts, two turns each, two answers each, some long and some short."""
    generator = torch.Generator().manual_seed(1)

    def tokens(n: int) -> list[int]:
        return torch.randint(1, 128, (n,), generator=generator).tolist()

    sequences: list[TokenSequence] = []
    for prompt in (tokens(5), tokens(3)):
        for turn in (prompt + tokens(6), prompt + tokens(3)):
            for answer in (turn + tokens(LENGTH - 12), turn + tokens(2)):
                weights = [0.0] * len(prompt) + [1.0] * (len(answer) - len(prompt))
                sequences.append(TokenSequence(answer, weights))
    (row,) = pack(sequences, 1024)
    return row


def compare(shared: PreTrainedModel, plain: PreTrainedModel) -> float:
    """Largest relative difference between one shared pass and separate plain ones: states and whole gradient."""
    batch = sample_batch()
    ours_at = run_trunk(trunk_of(shared), batch, batch.source, batch.owner, tries=True).hidden
    direction = torch.randn(ours_at.shape[-1], generator=torch.Generator().manual_seed(2))
    (ours_at @ direction).tanh().sum().backward()
    theirs_at = torch.zeros_like(ours_at)
    total = torch.zeros(())
    for owner, path in enumerate(paths(batch)):
        states = trunk_of(plain)(input_ids=batch.ids[path][None], use_cache=False).last_hidden_state[0]
        mine = batch.owner == owner
        picked = states[batch.positions[batch.source[mine]]]
        theirs_at[mine] = picked.detach()
        total = total + (picked @ direction).tanh().sum()
    total.backward()
    forward = (ours_at - theirs_at).norm() / theirs_at.norm()
    gradients = [
        (torch.zeros_like(p) if p.grad is None else p.grad, torch.zeros_like(q) if q.grad is None else q.grad)
        for p, q in zip(shared.parameters(), plain.parameters(), strict=True)
    ]
    norm = torch.stack([q.norm() for _, q in gradients]).norm()
    backward = torch.stack([(p - q).norm() for p, q in gradients]).norm() / norm
    return max(forward.item(), backward.item())
