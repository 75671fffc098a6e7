"""What made a result: the time, the commit, the machine, the versions. It imports no package to learn its version."""

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

CPUINFO = Path("/proc/cpuinfo")
PACKAGES = ("alignkit", "torch", "transformers", "trl", "peft", "datasets", "bitsandbytes", "accelerate", "evaluate")


def provenance(*packages: str) -> dict[str, Any]:
    """What stands before published figures: date, commit, hardware, versions of Python and of `packages`."""
    return {
        "date": now()[:10],
        "alignkit": alignkit_commit(),
        "hardware": hardware(),
        "versions": installed_versions(packages),
    }


def now() -> str:
    """The time, ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def installed_versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Python's version and those of packages that are there; left out, of those that decide results."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def alignkit_commit() -> dict[str, Any] | None:
    """The commit of the alignkit in use and whether files changed since; None outside a repository."""

    def ask(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return {"commit": ask("rev-parse", "HEAD"), "changed": bool(ask("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None


def hardware() -> dict[str, Any]:
    """The machine and its processors; where torch is loaded, the vector instructions it uses and the accelerators."""
    found: dict[str, Any] = {"machine": platform.machine(), "cpu_maker": cpu_maker(), "cpu_family": cpu_family()}
    found |= {"cpus": os.cpu_count(), "processes": int(os.environ.get("WORLD_SIZE", "1"))}
    torch = sys.modules.get("torch")
    if torch is not None:
        found["cpu_vectors"] = torch.backends.cpu.get_cpu_capability()
        if torch.cuda.is_available():
            found["accelerators"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return found


def cpu_maker() -> str | None:
    """Who made the processors, as Linux says it ("GenuineIntel", "AuthenticAMD"); None where it does not."""
    return _cpuinfo("vendor_id")


def cpu_family() -> int | None:
    """The processors' family, as Linux says it (AMD's 25 is Zen 3 and 4, 26 is Zen 5); None where it does not."""
    family = _cpuinfo("cpu family")
    return None if family is None else int(family)


def _cpuinfo(field: str) -> str | None:
    lines = CPUINFO.read_text(encoding="utf-8").splitlines() if CPUINFO.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), None)
