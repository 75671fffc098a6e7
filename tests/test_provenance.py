"""What stands before published figures."""

import subprocess
from datetime import date
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from alignkit.provenance import cpu_family, cpu_maker, provenance

ROOT = Path(__file__).parents[1]


def test_provenance_names_commit_machine_and_the_packages_asked_for() -> None:
    found = provenance("torch", "no-such-package")
    head = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    assert abs((date.fromisoformat(found["date"]) - date.today()).days) <= 1  # UTC
    assert (found["alignkit"] or {}).get("commit") == (head.stdout.strip() or None)
    assert found["versions"].keys() == {"python", "torch"} and found["versions"]["torch"] == version("torch")
    assert found["hardware"]["cpu_vectors"] == torch.backends.cpu.get_cpu_capability()


def test_the_cpu_s_maker_and_family_are_read_as_linux_says_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = tmp_path / "cpuinfo"
    monkeypatch.setattr("alignkit.provenance.CPUINFO", described)
    assert (cpu_maker(), cpu_family()) == (None, None)
    described.write_text("processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 26\nmodel\t\t: 2\n")
    assert (cpu_maker(), cpu_family()) == ("AuthenticAMD", 26)
    described.write_text("processor\t: 0\nBogoMIPS\t: 50.00\nCPU implementer\t: 0x41\n")
    assert (cpu_maker(), cpu_family()) == (None, None)
