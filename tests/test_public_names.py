"""The public names: all there, nothing heavy before it is used."""

import subprocess
import sys
from pathlib import Path

import tiny

import alignkit


def test_every_public_name_is_there_and_a_wrong_one_is_an_attribute_error() -> None:
    for name in alignkit.__all__:
        assert getattr(alignkit, name).__name__ == name
    assert not hasattr(alignkit, "no_such_name")


def test_importing_alignkit_loads_neither_torch_nor_transformers() -> None:
    code = "import alignkit, sys; print([m for m in ('torch', 'transformers', 'peft', 'trl') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_training_without_adapters_loads_no_library_of_adapters(tmp_path: Path) -> None:
    """Sixty megabytes and a second of every run's start."""
    folder = tiny.checkpoint(tmp_path)
    code = (
        "import sys\nfrom alignkit.stages import pretrain, sft, reward, dpo, kto, ppo, sample, critique, evaluate\n"
        "from alignkit.models import load_policy\nfrom alignkit.options.shared import ModelOptions\n"
        f"load_policy(ModelOptions(path={str(folder)!r}))\n"
        "print([m for m in ('peft', 'bitsandbytes') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_core_needs_none_of_the_extras() -> None:
    blocked = "datatrove, orjson, fastapi, uvicorn, sqlalchemy, rouge_score, sacrebleu, jsonschema, math_verify"
    blocked += ", vllm, deepspeed"
    names = ", ".join(f"{name.strip()!r}" for name in blocked.split(","))
    code = (
        f"import sys\nfor name in ({names}): sys.modules[name] = None\n"
        "import alignkit, alignkit.cli, alignkit.recipe\n"
        "from alignkit.stages import pretrain, sft, reward, dpo, ppo, evaluate\n"
        "[getattr(alignkit, name) for name in alignkit.__all__]\nprint('whole')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "whole", done.stderr[-2000:]
