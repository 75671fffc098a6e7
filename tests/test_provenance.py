"""What stands before published figures."""

import subprocess
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch

from alignkit.provenance import provenance

ROOT = Path(__file__).parents[1]


def test_provenance_names_commit_machine_and_the_packages_asked_for() -> None:
    found = provenance("torch", "no-such-package")
    head = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    assert abs((date.fromisoformat(found["date"]) - date.today()).days) <= 1  # UTC
    assert (found["alignkit"] or {}).get("commit") == (head.stdout.strip() or None)
    assert found["versions"].keys() == {"python", "torch"} and found["versions"]["torch"] == version("torch")
    assert found["hardware"]["cpu_vectors"] == torch.backends.cpu.get_cpu_capability()
