"""Prompts read off a trie, rows that leave, a cache with room: what is drawn equals plain passes of each row alone."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_attention import FAMILIES, two_models
from transformers import PreTrainedModel

from alignkit.attention import NAME
from alignkit.generate import _generate, _until_stop
from alignkit.keyed import KeyedDraw, draw, row_keys, uniforms
from alignkit.policy import Policy
from alignkit.prefill import RoomyLayer, prompt_cache

STOPS = tuple(range(100, 128))
FORMAT: Any = SimpleNamespace(stop_ids=STOPS, pad_id=0)
NEW = 9
"""Tokens: with the prompts, beyond the windows of those families that have one."""


def contexts() -> list[list[int]]:
    """Two prompts with a beginning in common, 3 samples of each, and a short one."""
    beginning = [5, 6, 7, 8]
    return [*[[*beginning, 9, 10, 11, 12, 13]] * 3, *[[*beginning, 20, 21]] * 3, [30, 31]]


def drawn_alone(plain: PreTrainedModel, context: list[int], key: torch.Tensor) -> tuple[list[int], list[float]]:
    """The same draws and their log-probabilities from whole passes, without a cache, a batch or padding."""
    ids, logps = list(context), []
    with torch.no_grad():
        for position in range(NEW):
            logits = plain(input_ids=torch.tensor([ids]), use_cache=False).logits[:, -1].float()
            ids.append(int(draw(logits, uniforms(key, position))[0]))
            logps.append(float(logits.double().log_softmax(-1)[0, ids[-1]]))
    ended = _until_stop(ids[len(context) :], STOPS)
    return ended, logps[: len(ended)]


@pytest.mark.parametrize("family", [*FAMILIES])
def test_rollouts_equal_plain_passes_of_each_row(family: str) -> None:
    ours, plain = two_models(family, FAMILIES[family], NAME)
    keys = row_keys(1, 2, [0, 0, 0, 1, 1, 1, 2], [0, 1, 2, 0, 1, 2, 0])
    keyed = KeyedDraw(keys, max(map(len, contexts())), 1.0, 0, STOPS)
    rows = _generate(Policy(ours, tries=True), contexts(), keyed, NEW, FORMAT)
    for n, (context, (ids, logps)) in enumerate(zip(contexts(), rows, strict=True)):
        expected = drawn_alone(plain, context, keys[n : n + 1])
        assert ids == expected[0] and logps == pytest.approx(expected[1], abs=1e-4)
    assert len({len(ids) for ids, _ in rows}) > 1 and len(keyed.keys) < len(keys)


def test_prompts_are_computed_once_and_have_room() -> None:
    ours, _ = two_models("qwen3", FAMILIES["qwen3"], NAME)
    seen: list[int] = []
    ours.model.layers[0].mlp.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0].shape[1]))
    with torch.no_grad():
        cache = prompt_cache(Policy(ours, tries=True), contexts(), NEW)
    assert seen == [4 + 4 + 1 + 1]
    assert cache is not None and cache.get_seq_length() == 8
    layer = cache.layers[0]
    assert isinstance(layer, RoomyLayer) and layer.held[0].shape[-2] == 8 + 1 + NEW
    assert layer.keys.data_ptr() == layer.held[0].data_ptr()


def test_models_without_tries_have_no_prompt_cache() -> None:
    ours, _ = two_models("qwen3", FAMILIES["qwen3"], NAME)
    assert prompt_cache(Policy(ours, tries=False), contexts(), NEW) is None
    assert prompt_cache(Policy(ours, tries=True), [[1], [1, 2]], NEW) is None
