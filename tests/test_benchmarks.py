"""The scripts of benchmarks/ find what they import: no other test runs them."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def test_every_script_finds_what_it_imports() -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("datatrove", reason="the extra `data` is not installed")
    scripts = sorted(map(str, BENCHMARKS.rglob("*.py")))
    look = "import runpy, sys; sys.path[:0] = sys.argv[1:3]; [runpy.run_path(one) for one in sys.argv[3:]]"
    folders = [str(BENCHMARKS), str(BENCHMARKS / "evidence")]
    done = subprocess.run(
        [sys.executable, "-c", look, *folders, *scripts], capture_output=True, text=True, check=False
    )
    assert len(scripts) > 10 and done.returncode == 0, done.stderr
