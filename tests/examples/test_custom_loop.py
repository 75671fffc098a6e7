"""The example trains, stays short, and leaves an adapter that plain peft loads."""

import importlib.util
from pathlib import Path

import tiny
from peft import PeftModel
from transformers import AutoModelForCausalLM

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/custom_loop.py"


def test_the_custom_loop_learns_its_own_loss(tmp_path: Path) -> None:
    assert len(EXAMPLE.read_text().splitlines()) <= 60
    spec = importlib.util.spec_from_file_location("custom_loop", EXAMPLE)
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    base = str(tiny.checkpoint(tmp_path / "base", tiny.LETTERS + ","))
    history = example.main(base, str(tmp_path / "adapter"), "none", steps=30)
    assert history[0]["loss"] == history[0]["ranking"] + history[0]["best"] and history[0]["best"] > 2
    assert history[-1]["best"] < 0.7 * history[0]["best"]
    assert history[-1]["ranking"] == 0 and history[-1]["accuracy"] == 1.0
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(tmp_path / "adapter"))
