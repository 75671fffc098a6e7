"""The benchmark against TRL: taking a gain of ours away changes the time, never what is trained."""

import sys
from pathlib import Path

import pytest

import alignkit.batches
import alignkit.products
from alignkit.runs import Run

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
import against_trl


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    against_trl.make_inputs(None, 16, folder)
    return folder


@pytest.mark.parametrize("stage", list(against_trl.VARIANTS))
def test_every_variant_ends_at_the_same_loss(inputs: Path, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = {}
    for variant in against_trl.VARIANTS[stage]:
        if variant.startswith("trl"):
            continue
        with monkeypatch.context() as patched:
            for home, name in (
                (alignkit.batches, "pack"),
                (alignkit.products, "onednn_is_faster"),
                (Run, "log"),
            ):
                patched.setattr(home, name, getattr(home, name))
            losses[variant] = against_trl.run_ours(stage, variant, inputs)["loss"]
    assert len(losses) >= 4
    assert all(loss == pytest.approx(losses["alignkit"], rel=2e-5) for loss in losses.values()), losses
