"""Attention over the trie of a batch, registered with transformers; knows nothing of stages, text or losses.

Token i sees token j if and only if j <= i < end[j]. The row falls into unbranched segments, each of which attends
causally to its path from the root: that is all the kernels below compute.
"""

from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from alignkit.layout import TrieLayout

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # a torch build without it
    varlen_attn = None

# Before torch 2.12 the kernel has no such keyword, and wants a key for every query head.
GROUPED = varlen_attn is not None and "enable_gqa" in signature(varlen_attn).parameters
NAME = "alignkit_trie"
KEYWORD = "trie_layout"
# Keywords that say nothing the layout does not: positions are in the rotary embedding already.
HARMLESS = frozenset(
    (
        *("position_ids", "position_embeddings", "cache_position", "use_cache", "past_key_values", "logits_to_keep"),
        *("output_attentions", "output_hidden_states", "output_router_logits", "return_dict", "layer_idx"),
    )
)


def trie_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    is_causal: bool | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Attention of one row: query [1, H, T, D], key and value [1, H_kv, T, D] -> [1, T, H, D].

    `dropout` falls on the attention weights. Raises ValueError without a layout (a plain call would otherwise ignore
    padding without a word), for non-causal attention and for any keyword that is neither implemented nor known to be
    harmless.
    """
    layout = kwargs.pop(KEYWORD, None)
    if not isinstance(layout, TrieLayout):
        raise ValueError(f"attention {NAME!r} needs a trie's layout; plain calls need set_attn_implementation('sdpa')")
    unknown = [name for name, given in kwargs.items() if given is not None and name not in HARMLESS]
    if unknown:
        raise ValueError(f"attention {NAME!r} does not implement {', '.join(sorted(unknown))}")
    if attention_mask is not None or is_causal is False or len(query) != 1:
        raise ValueError(f"attention {NAME!r} takes one causal row, without a mask")
    key, value = key.to(query.dtype), value.to(query.dtype)
    window = sliding_window if sliding_window and sliding_window < layout.longest[1] else None
    plain = softcap is None and s_aux is None
    half = query.dtype in (torch.float16, torch.bfloat16)
    if plain and not dropout and query.is_cuda and varlen_attn is not None and half:
        return _varlen(layout, query, key, value, scaling, window), None
    heads, values = query.shape[1], value.shape[-1]
    queries = torch.cat([group.query.flatten() for group in layout.groups])
    nodes = torch.cat([group.key.flatten() for group in layout.groups])
    counts = [group.query.numel() for group in layout.groups]
    key_counts = [group.key.numel() for group in layout.groups]
    parts = zip(
        _rows(query, queries).split(counts),
        _rows(key, nodes).split(key_counts),
        _rows(value, nodes).split(key_counts),
        strict=True,
    )
    outputs = []
    for number, (q, k, v) in enumerate(parts):
        size = len(layout.groups[number].query)
        q, k, v = (x.unflatten(0, (size, -1)).transpose(1, 2) for x in (q, k, v))
        if plain:
            causal = layout.groups[number].causal and window is None
            mask = None if causal else layout.mask(number, window)
            gqa = k.shape[1] != heads
            out = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=scaling, enable_gqa=gqa
            )
        else:
            out = _explicit(q, k, v, layout.mask(number, window), scaling, dropout, softcap, s_aux)
        outputs.append(out.transpose(1, 2).reshape(-1, heads * values))
    return torch.cat(outputs).index_select(0, layout.order).view(1, -1, heads, values), None


def _rows(states: Tensor, nodes: Tensor) -> Tensor:
    """[1, H, T, D] at the nodes: [N, H, D]. By whole rows, which copies, and adds up backward, fastest."""
    heads = states.shape[1]
    return states.squeeze(0).transpose(0, 1).flatten(1).index_select(0, nodes).unflatten(1, (heads, -1))


def _explicit(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    scaling: float | None,
    dropout: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Softmax attention written out, with Gemma 2's soft-cap and gpt-oss's sinks: [G, H, M, D]."""
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.float().masked_fill(~mask, float("-inf"))
    if sinks is not None:
        sink = sinks.float().view(1, -1, 1, 1).expand(len(scores), -1, scores.shape[2], 1)
        scores = torch.cat([scores, sink], -1)
    weights = F.dropout(torch.softmax(scores, -1)[..., : key.shape[2]], dropout)
    return weights.to(value.dtype) @ value


def _varlen(
    layout: TrieLayout, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None
) -> Tensor:
    """One varlen kernel call, aligned at the lower right: queries are segments, keys their paths."""
    key, value = (x[0].index_select(1, layout.key_nodes).transpose(0, 1) for x in (key, value))
    groups = query.shape[1] // key.shape[1]
    options: dict[str, Any] = {"enable_gqa": groups > 1} if GROUPED else {}
    if groups > 1 and not GROUPED:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    out = varlen_attn(
        query[0].transpose(0, 1).contiguous(),
        key.contiguous(),
        value.contiguous(),
        layout.query_starts,
        layout.key_starts,
        *layout.longest,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        **options,
    )
    return out[None]


def _no_mask(*args: object, **kwargs: object) -> None:
    """The layout says what is seen: transformers need build no mask."""


AttentionInterface.register(NAME, trie_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, _no_mask)
