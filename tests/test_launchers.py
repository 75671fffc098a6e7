"""The launchers in recipes/: their help, their grammar, and that their folder hides no package."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from alignkit.display import describe
from alignkit.options import STAGES
from alignkit.recipe import launch

ROOT = Path(__file__).parents[1]
LAUNCHERS = [*STAGES, "run"]


def python(*words: str, folder: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
    environment["HF_HUB_OFFLINE"] = "1"
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", LAUNCHERS)
def test_help_lists_every_option_with_its_description(name: str, tmp_path: Path) -> None:
    shown = python(str(ROOT / "recipes" / f"{name}.py"), "--help", folder=tmp_path)
    assert shown.returncode == 0 and f"recipes/{name}.py [RECIPE] [key=value ...]" in shown.stdout
    lines = shown.stdout.splitlines()
    for option, field in (STAGES[name].model_fields if name in STAGES else {}).items():
        assert field.description, f"{name}: {option} is not described"
        (at,) = [n for n, line in enumerate(lines) if line.startswith(f"  {option}:")]
        assert lines[at + 1].strip() == " ".join(field.description.split())
    assert any(line.startswith("  runtime.token_budget: int = 8192") for line in lines)


def test_a_launchers_folder_hides_no_package(tmp_path: Path) -> None:
    script = """if True:
        import importlib.util, runpy, sys
        launcher = sys.argv[1]
        sys.argv[1:] = ["--help"]
        sys.path.insert(0, launcher.rpartition("/")[0])  # as `python recipes/sft.py` does
        try:
            runpy.run_path(launcher, run_name="__main__")
        except SystemExit:
            print("origin", importlib.util.find_spec("evaluate").origin)
    """
    found = python("-c", script, str(ROOT / "recipes" / "sft.py"), folder=tmp_path)
    origin = found.stdout.splitlines()[-1]
    assert origin.startswith("origin") and "recipes" not in Path(origin).parts


def test_only_the_first_process_drives(tmp_path: Path) -> None:
    quiet = python(str(ROOT / "recipes/sft.py"), "absent.yaml", folder=tmp_path, RANK="1", WORLD_SIZE="2")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    loud = python(str(ROOT / "recipes/sft.py"), "absent.yaml", folder=tmp_path, RANK="0", WORLD_SIZE="2")
    assert loud.returncode == 2 and "absent.yaml: cannot be read" in loud.stderr


RECIPE = """
stages:
  warm: {stage: sft, model: {path: base}, data: {path: a}}
  sft: {model: {path: "@warm"}, data: {path: a}}
  reward: {model: {path: "@sft"}, data: {path: a}}
  ppo: {model: {path: "@sft"}, data: {path: a}, train: {learning_rate: 1e-5}, reward: {kind: learned, path: "@reward"}}
"""


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, list[str], list[str] | None, bool]]:
    """What launchers hand over to the driver."""
    found: list[tuple[Path, list[str], list[str] | None, bool]] = []

    def record(path: Path, overrides: list[str], names: list[str] | None, allow_code: bool) -> None:
        found.append((path, overrides, names, allow_code))

    monkeypatch.setattr(launch, "run_recipe", record)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_text(RECIPE)
    return found


def start(stage: str | None, *arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        launch.launch(stage, Path("quickstart.yaml"), list(arguments))
    return int(ended.value.code or 0)


def test_a_key_of_the_stage_is_its_own_and_any_other_goes_to_the_recipe(asked: list[tuple[object, ...]]) -> None:
    given = ("clip=0.3", "reward.normalised=false", "sft.train.steps=2", "runtime.processes=2", "seed=3")
    assert start("ppo", "own.yaml", *given, "--allow-code") == 0
    placed = ["ppo.clip=0.3", "ppo.reward.normalised=false", "sft.train.steps=2", "runtime.processes=2", "seed=3"]
    assert asked == [(Path("own.yaml"), placed, ["ppo"], True)]


def test_all_stages_of_the_type_are_meant(asked: list[tuple[object, ...]]) -> None:
    assert start("sft", "own.yaml", "turns=last") == 0
    assert asked == [(Path("own.yaml"), ["warm.turns=last", "sft.turns=last"], ["warm", "sft"], False)]


def test_run_takes_the_whole_chain_and_the_launchers_process_count(
    asked: list[tuple[object, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert start(None, "ppo.clip=0.3") == 0
    assert asked == [(Path("quickstart.yaml"), ["runtime.processes=2", "ppo.clip=0.3"], None, False)]


@pytest.mark.parametrize(
    ("stage", "arguments", "message"),
    [
        ("dpo", ("own.yaml",), "own.yaml has no dpo stage"),
        ("sft", ("own.yaml", "other.yaml"), "one recipe at a time"),
        ("sft", ("own.yaml", "--steps"), "unknown option --steps"),
    ],
)
@pytest.mark.usefixtures("asked")
def test_what_a_launcher_refuses(
    stage: str, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(stage, *arguments) == 2
    assert message in capsys.readouterr().err


def test_several_machines_are_refused(asked: list[tuple[object, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    assert start("sft", "own.yaml") == 2 and asked == []


def test_every_option_of_every_stage_is_described() -> None:
    for name, config in STAGES.items():
        described = list(describe(config))
        assert all(text for _, _, _, text in described), name
        assert len(described) > 10
