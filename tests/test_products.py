"""Products by oneDNN against the plain layers of torch and transformers."""

import copy
from pathlib import Path

import pytest
import tiny
import torch
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from alignkit import products
from alignkit.models import load_policy
from alignkit.options.shared import ModelOptions
from alignkit.products import QuickConv1D, QuickLinear, use_onednn

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that gains by it, and for products of any size."""
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(products, "LEAST", 1)


def models(folder: Path) -> list[PreTrainedModel]:
    """A Llama, without biases, and a GPT-2, with biases and its own form of linear layer."""
    torch.manual_seed(0)
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=41, n_embd=32, n_layer=2, n_head=4, n_positions=64)).eval()
    return [AutoModelForCausalLM.from_pretrained(tiny.checkpoint(folder / "llama")), gpt2]


@needs_onednn
@pytest.mark.usefixtures("everywhere")
def test_logits_and_gradients_are_the_plain_models(tmp_path: Path) -> None:
    ids = torch.randint(41, (3, 17), generator=torch.Generator().manual_seed(1))
    for plain in models(tmp_path):
        quick = copy.deepcopy(plain)
        use_onednn(quick)
        changed = {type(module) for module in quick.modules()} & {QuickLinear, QuickConv1D}
        assert changed and list(quick.state_dict()) == list(plain.state_dict())
        first, second = (model(input_ids=ids, labels=ids) for model in (plain, quick))
        torch.testing.assert_close(second.logits, first.logits, rtol=1e-5, atol=1e-5)
        first.loss.backward()
        second.loss.backward()
        whole = torch.cat([p.grad.flatten() for p in plain.parameters() if p.grad is not None]).norm()
        for (name, a), b in zip(plain.named_parameters(), quick.parameters(), strict=True):
            assert a.grad is not None and b.grad is not None, name
            assert (a.grad - b.grad).norm() <= 1e-5 * whole, name


@needs_onednn
def test_gradients_are_those_of_the_products_in_double_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    for rows, inward, outward in ((5, 3, 7), (4, 8, 2)):  # either operand of the weight's gradient is the smaller
        x, w, b = (torch.randn(s, generator=generator) for s in ((2, rows, inward), (outward, inward), (outward,)))
        slope = torch.randn(2, rows, outward, generator=generator)
        leaves = [t.clone().requires_grad_() for t in (x, w, b)]
        out = products.Affine.apply(*leaves)
        out.backward(slope)
        exact = [t.double().requires_grad_() for t in (x, w, b)]
        plain = exact[0] @ exact[1].t() + exact[2]
        plain.backward(slope.double())
        torch.testing.assert_close(out.double(), plain, rtol=1e-5, atol=1e-5)
        for mine, true in zip(leaves, exact, strict=True):
            assert mine.grad is not None and true.grad is not None
            torch.testing.assert_close(mine.grad.double(), true.grad, rtol=1e-5, atol=1e-5)


@needs_onednn
def test_a_slope_that_is_one_number_everywhere() -> None:
    x, w = torch.randn(6, 3), torch.randn(4, 3).requires_grad_()
    products.Affine.apply(x, w, None).sum().backward()
    assert w.grad is not None
    torch.testing.assert_close(w.grad, x.sum(0).expand(4, 3), rtol=1e-5, atol=1e-5)


@needs_onednn
@pytest.mark.usefixtures("everywhere")
def test_frozen_weights_get_no_gradient_and_adapters_fit(tmp_path: Path) -> None:
    model = models(tmp_path)[0]
    use_onednn(model)
    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    adapted = get_peft_model(model, lora)
    ids = torch.randint(41, (2, 9))
    adapted(input_ids=ids, labels=ids).loss.backward()
    grads = {name: p.grad is not None for name, p in adapted.named_parameters()}
    assert any(grads.values()) and all(given == ("lora_" in name) for name, given in grads.items())
    before = adapted(input_ids=ids).logits
    merged = adapted.merge_and_unload()
    assert any(isinstance(module, QuickLinear) for module in merged.modules())
    torch.testing.assert_close(merged(input_ids=ids).logits, before, rtol=1e-4, atol=1e-4)


@needs_onednn
def test_small_low_precision_and_autocast_products_stay_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(products.Affine, "apply", lambda *_: pytest.fail("oneDNN was asked"))
    layer = nn.Linear(8, 8)
    use_onednn(layer)
    layer(torch.randn(3, 8))
    monkeypatch.setattr(products, "LEAST", 1)
    with pytest.raises(pytest.fail.Exception, match="oneDNN was asked"):
        layer(torch.randn(3, 8))
    layer(torch.randn(0, 8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(torch.randn(3, 8))
    layer.bfloat16()(torch.randn(3, 8, dtype=torch.bfloat16))


def test_other_machines_and_other_layers_are_left_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = nn.ModuleList([nn.Linear(4, 4), Conv1D(4, 4), Linear4bit(4, 4)])
    monkeypatch.setattr(products, "onednn_is_faster", lambda: False)
    use_onednn(layers)
    assert [type(layer) for layer in layers] == [nn.Linear, Conv1D, Linear4bit]
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    use_onednn(layers)
    assert [type(layer) for layer in layers] == [QuickLinear, QuickConv1D, Linear4bit]


@pytest.mark.parametrize(
    ("vectors", "maker", "family", "faster"),
    [
        ("AVX512", "AuthenticAMD", 26, True),
        ("AVX512", "AuthenticAMD", 25, False),
        ("AVX512", "GenuineIntel", 6, False),
        ("AVX512", "HygonGenuine", 26, False),
        ("AVX2", "AuthenticAMD", 26, False),
        ("AVX512", None, None, False),
    ],
)
def test_the_rule_is_the_cpus_vectors_maker_and_family(
    vectors: str, maker: str | None, family: int | None, faster: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: vectors)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(products, "cpu_maker", lambda: maker)
    monkeypatch.setattr(products, "cpu_family", lambda: family)
    assert products.onednn_is_faster() is faster


def test_a_policy_is_loaded_with_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny.checkpoint(tmp_path / "model")
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    kinds = {type(module) for module in load_policy(ModelOptions(path=str(folder))).model.modules()}
    assert QuickLinear in kinds and nn.Linear not in kinds
