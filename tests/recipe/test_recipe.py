"""Recipes: what is refused, in which order stages run, what re-runs when something changes, and what does not."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from alignkit.config import Config, InputError, build
from alignkit.lineage import read_record
from alignkit.options.environment import EnvironmentOptions
from alignkit.options.reward_source import RewardSource
from alignkit.options.shared import DataOptions, ModelOptions, RuntimeOptions
from alignkit.recipe.chain import StageFailed, plan, run_chain
from alignkit.recipe.read import Recipe, load_recipe
from alignkit.runs import Run

ROOT = Path(__file__).parents[2]


class Train(Config):
    """A stage that starts from a model."""

    model: ModelOptions
    data: DataOptions | None = None
    reward: RewardSource | None = None
    environment: EnvironmentOptions | None = None
    beta: float = 0.1
    seed: int = 0


class Compare(Config):
    """A stage that looks at several models."""

    models: list[str]


STAGES: dict[str, type[Config]] = {"sft": Train, "reward": Train, "dpo": Train, "ppo": Train, "evaluate": Compare}

CHAIN = """
name: small
runtime: {trackers: []}
stages:
  sft:    {model: {path: base}, data: {path: demonstrations.jsonl}}
  reward: {model: {path: "@sft"}}
  dpo:    {model: {path: "@sft"}, beta: 0.1}
  ppo:    {model: {path: "@sft"}, data: {path: "@reward"}}
  evaluate: {models: ["@sft", "@dpo"]}
"""


class Fake:
    """Runs stages by writing their name into their artifact; counts them."""

    def __init__(self, fails: Callable[[str], bool] = lambda name: False) -> None:
        self.ran: list[str] = []
        self.fails = fails

    def __call__(self, directory: Path, runtime: RuntimeOptions) -> None:
        self.ran.append(directory.name)
        record = read_record(directory)
        assert record is not None
        run = Run.open(directory, record.stage, build(STAGES[record.stage], record.config, ""), runtime, record.id)
        run.log(1, {"loss": 1.0})
        if self.fails(directory.name):
            raise StageFailed("it broke")
        run.model_dir.mkdir(exist_ok=True)
        (run.model_dir / "name").write_text(directory.name + record.id)
        run.finish({"loss": 1.0})


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("base").mkdir()
    Path("base/config.json").write_text("{}")
    Path("base/model.safetensors").write_bytes(b"\0" * 9)
    Path("demonstrations.jsonl").write_text('{"messages": []}\n')
    Path("small.yaml").write_text(CHAIN)
    return Path("small.yaml")


def load(path: Path, *overrides: str) -> Recipe:
    return load_recipe(path, overrides, stages=STAGES)


def run(path: Path, *overrides: str, **options: Any) -> list[str]:
    fake = Fake()
    run_chain(load(path, *overrides), Path("runs"), fake, **options)
    return fake.ran


# ---------------------------------------------------------------------------------------------------- skip, re-run


def test_an_unchanged_recipe_does_nothing(recipe: Path) -> None:
    assert run(recipe) == ["sft", "reward", "dpo", "ppo", "evaluate"]
    assert run(recipe) == []


def test_a_changed_option_re_runs_its_stage_and_what_builds_on_it(recipe: Path) -> None:
    run(recipe)
    assert run(recipe, "dpo.beta=0.2") == ["dpo", "evaluate"]
    assert run(recipe, "reward.beta=0.2") == ["reward", "ppo"]  # dpo and evaluate are found again by id


def test_runtime_and_layout_of_the_file_change_nothing(recipe: Path) -> None:
    run(recipe)
    assert run(recipe, "runtime.token_budget=64", "runtime.processes=2") == []
    text = CHAIN.replace("beta: 0.1", "beta: 1e-1, runtime: {log_every: 5}")
    recipe.write_text("# a comment\n" + text.replace('"@sft"', "'@sft'"))
    assert run(recipe) == []


def test_changed_contents_re_run_what_reads_them(recipe: Path) -> None:
    run(recipe)
    Path("demonstrations.jsonl").write_text('{"messages": [1]}\n')
    assert run(recipe) == ["sft", "reward", "dpo", "ppo", "evaluate"]
    Path("base/model.safetensors").write_bytes(b"\1" * 9)
    assert run(recipe, targets=["reward"]) == ["sft", "reward"]
    Path("base/.cache").write_text("hidden files do not count")
    Path("base").rename("elsewhere")
    Path("demonstrations.jsonl").rename("moved.jsonl")
    recipe.write_text(CHAIN.replace("path: base", "path: elsewhere").replace("demonstrations", "moved"))
    assert run(recipe, targets=["reward"]) == []


def test_a_reward_is_also_the_contents_of_its_files(recipe: Path) -> None:
    Path("guide.txt").write_text("Be brief.")
    of = "{form: {kind: rules, rule: refusal}, tone: {kind: judge, path: base, guidelines: guide.txt}}"
    recipe.write_text(CHAIN.replace('data: {path: "@reward"}', f"reward: {{kind: combined, of: {of}}}"))
    run(recipe, targets=["ppo"])
    assert run(recipe, targets=["ppo"]) == []
    Path("guide.txt").write_text("Be kind.")
    assert run(recipe, targets=["ppo"]) == ["ppo"]
    with pytest.raises(InputError, match="there is no file or folder 'nowhere' here"):
        run(recipe, "ppo.reward={kind: judge, path: nowhere, guidelines: guide.txt}", targets=["ppo"])


@pytest.mark.parametrize("code", ["mine.py", "mine/__init__.py"])
@pytest.mark.parametrize("options", ["{kind: tools, tools: [calculator, %s]}", "{kind: function, path: %s}"])
def test_an_environment_is_also_its_code(recipe: Path, options: str, code: str) -> None:
    Path("mine").mkdir()  # without an __init__.py it is no package
    Path(code).write_text("def act(x): return x")
    Path("calculator").mkdir()
    change = f"ppo.environment={options % 'mine:act'}"
    run(recipe, change, targets=["ppo"])
    assert run(recipe, change, targets=["ppo"]) == []
    Path("calculator/anything").write_text("what happens to lie there is no tool")
    assert run(recipe, change, targets=["ppo"]) == []
    Path(code).write_text("def act(x): return 2 * x")
    assert run(recipe, change, targets=["ppo"]) == ["ppo"]
    assert run(recipe, f"ppo.environment={options % 'mine:other'}", targets=["ppo"]) == ["ppo"]


def test_a_text_that_happens_to_name_a_folder_is_a_text(recipe: Path) -> None:
    recipe.write_text(CHAIN.replace("path: base", "path: base, eos_token: stop"))
    run(recipe, targets=["sft"])
    Path("stop").mkdir()
    Path("stop/anything").write_text("x")
    assert run(recipe, targets=["sft"]) == []


def test_arguments_of_a_template_are_no_options(recipe: Path) -> None:
    recipe.write_text(CHAIN.replace("path: base", "path: base, template_kwargs: {model: gpt, path: stop}"))
    run(recipe, targets=["sft"])
    Path("stop").write_text("x")
    assert run(recipe, targets=["sft"]) == []


def test_a_file_of_equal_size_and_time_is_hashed_again_unless_large(recipe: Path) -> None:
    run(recipe, targets=["sft"])
    facts = Path("base/model.safetensors").stat()
    Path("base/model.safetensors").write_bytes(b"\2" * 9)
    os.utime("base/model.safetensors", ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert run(recipe, targets=["sft"]) == ["sft"]


def test_the_seed_is_part_of_the_id_and_a_stage_may_have_its_own(recipe: Path) -> None:
    run(recipe)
    assert run(recipe, "seed=1") == ["sft", "reward", "dpo", "ppo", "evaluate"]
    ids = {step.stage.name: step.id for step in plan(load(recipe, "dpo.seed=3"), Path("runs"))}
    assert ids["dpo"] == plan(load(recipe, "dpo.seed=3", "dpo.stage=dpo"), Path("runs"))[2].id
    assert load(recipe, "seed=1", "dpo.seed=3").stages["dpo"].config.model_dump()["seed"] == 3


def test_a_superseded_run_is_set_aside_and_found_again(recipe: Path) -> None:
    run(recipe)
    first = read_record(Path("runs/small/dpo"))
    assert first is not None
    run(recipe, "dpo.beta=0.2")
    aside = Path(f"runs/small/dpo.{first.id[:8]}")
    assert (aside / "model" / "name").read_text() == "dpo" + first.id
    assert run(recipe) == []
    assert (Path("runs/small/dpo/model/name")).read_text() == "dpo" + first.id
    assert not aside.exists()
    assert run(recipe, "dpo.beta=0.2") == []


def test_a_run_that_was_not_done_is_set_aside_too_and_goes_on_when_asked_for_again(recipe: Path) -> None:
    broken = Fake(lambda name: name == "dpo")
    with pytest.raises(StageFailed):
        run_chain(load(recipe), Path("runs"), broken, targets=["dpo"])
    half = read_record(Path("runs/small/dpo"))
    assert half is not None
    assert run(recipe, "dpo.beta=0.2", targets=["dpo"]) == ["dpo"]
    assert Path(f"runs/small/dpo.{half.id[:8]}/metrics.jsonl").exists()
    states = {step.stage.name: step.state for step in plan(load(recipe), Path("runs"))}
    assert (states["sft"], states["dpo"], states["ppo"]) == ("done", "unfinished", "new")
    assert run(recipe, targets=["dpo"]) == ["dpo"]


def test_a_missing_artifact_is_made_again(recipe: Path) -> None:
    run(recipe)
    shutil.rmtree("runs/small/reward/model")
    assert run(recipe) == ["reward"]


def test_a_failed_stage_stops_the_chain_and_keeps_what_was_done(recipe: Path) -> None:
    broken = Fake(lambda name: name == "reward")
    with pytest.raises(StageFailed, match="it broke"):
        run_chain(load(recipe), Path("runs"), broken)
    assert broken.ran == ["sft", "reward"]
    assert run(recipe) == ["reward", "dpo", "ppo", "evaluate"]


def test_targets_run_what_they_build_on_and_no_more(recipe: Path) -> None:
    assert run(recipe, targets=["ppo"]) == ["sft", "reward", "ppo"]
    with pytest.raises(InputError, match=r"no stage 'pp0'; did you mean `ppo`"):
        run(recipe, targets=["pp0"])


def test_a_name_of_its_own_says_its_type(recipe: Path) -> None:
    recipe.write_text(CHAIN + '  strict: {stage: dpo, model: {path: "@sft"}, beta: 0.5}\n')
    assert run(recipe)[-1] == "strict"
    assert json.loads(Path("runs/small/strict/run.json").read_text())["stage"] == "dpo"


def test_what_else_lies_in_the_way_is_not_touched(recipe: Path) -> None:
    Path("runs/small/sft").mkdir(parents=True)
    Path("runs/small/sft/notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"sft is in the way.*move or delete"):
        run(recipe)
    assert Path("runs/small/sft/notes.txt").read_text() == "mine"


def test_two_drivers_of_one_recipe_are_refused(recipe: Path) -> None:
    def nested(directory: Path, runtime: RuntimeOptions) -> None:
        run(recipe)

    with pytest.raises(InputError, match="another process"):
        run_chain(load(recipe), Path("runs"), nested)


# ----------------------------------------------------------------------------------------------------- kill, resume


def test_a_killed_chain_goes_on_with_the_stage_it_was_in(recipe: Path) -> None:
    script = """
        import sys, time
        from pathlib import Path
        sys.path[:0] = [sys.argv[1], sys.argv[1] + "/tests/recipe"]
        from test_recipe import Fake, load
        from alignkit.recipe.chain import run_chain
        fake = Fake()
        def stage(directory, runtime):
            if directory.name == "reward":
                print("in reward", flush=True)
                time.sleep(60)
            fake(directory, runtime)
        run_chain(load(Path("small.yaml")), Path("runs"), stage)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(ROOT)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as driver:
        assert driver.stdout is not None and driver.stdout.readline() == b"in reward\n"
        driver.send_signal(signal.SIGKILL)
    states = {step.stage.name: step.state for step in plan(load(recipe), Path("runs"))}
    assert states == {"sft": "done", "reward": "unfinished", "dpo": "new", "ppo": "new", "evaluate": "new"}
    assert run(recipe) == ["reward", "dpo", "ppo", "evaluate"]


@pytest.mark.parametrize("moved", [1, 2])
def test_a_kill_between_setting_aside_and_bringing_back_loses_nothing(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, moved: int
) -> None:
    run(recipe, targets=["dpo"])
    run(recipe, "dpo.beta=0.2", targets=["dpo"])
    rename, left = Path.rename, [moved]

    def dying(self: Path, target: Path) -> Path:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", dying)
        if moved == 1:
            with pytest.raises(KeyboardInterrupt):
                run(recipe, targets=["dpo"])
        else:
            run(recipe, targets=["dpo"])
    assert run(recipe, targets=["dpo"]) == []
    assert run(recipe, "dpo.beta=0.2", targets=["dpo"]) == []


def test_planning_imports_no_torch(recipe: Path) -> None:
    run(recipe, targets=["sft"])
    script = """
        import sys
        from pathlib import Path
        from alignkit.recipe.chain import plan
        from alignkit.recipe.read import load_recipe
        from alignkit.options.shared import ModelOptions
        from alignkit.config import Config
        class Train(Config):
            model: ModelOptions
        Path("one.yaml").write_text("stages: {sft: {model: {path: base}}}")
        print([step.state for step in plan(load_recipe(Path("one.yaml"), stages={"sft": Train}), Path("runs"))])
        print([name for name in ("torch", "transformers", "accelerate", "numpy") if name in sys.modules])
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", textwrap.dedent(script)]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.split("\n")[:2] == ["['new']", "[]"]


# ------------------------------------------------------------------------------------------------------ refusals


REFUSED = {
    "an unknown @name": (
        '"@sft"}, beta',
        '"@stf"}, beta',
        r"yaml:7: stages.dpo.model.path: `@stf` is no stage.*`sft`",
    ),
    "an unknown key": ("beta: 0.1", "betta: 0.1", r"yaml:7: stages.dpo.betta: unknown key; did you mean `beta`"),
    "an unknown stage": ("  reward:", "  rewards:", r"yaml:6: stages.rewards: 'rewards' is no.*did you mean `reward`"),
    "a cycle": ("path: base", 'path: "@dpo"', r"in a circle: sft -> dpo -> sft"),
    "4-bit without LoRA": (
        "path: base}",
        "path: base, load_in_4bit: true}",
        r"yaml:5: .*load_in_4bit needs lora: .*`lora",
    ),
    "a missing file": ("demonstrations", "demonstration", r"yaml:5: stages.sft.data.path: there is no file"),
    "no finite number": ("beta: 0.1", "beta: .inf", r"yaml:7: stages.dpo.beta: .*finite number"),
    "a runtime without options": ("{trackers: []}", "fast", r"yaml:3: runtime: .*object"),
    "a stage's runtime without options": ("beta: 0.1", "runtime: fast", r"yaml:7: stages.dpo.runtime: .*object"),
    "a wrong type": ("beta: 0.1", "beta: much", r"yaml:7: stages.dpo.beta: .*number"),
    "an unknown runtime option": ("trackers", "tracker", r"yaml:3: runtime.tracker: .*`trackers`"),
    "an unknown outer key": ("runtime:", "run_time:", r"yaml:3: run_time: .*`runtime`"),
    "a bad name": ("name: small", "name: ../small", r"'../small' may hold letters"),
    "code without --allow-code": ("trackers: []", "allow_code: true", r"yaml:3: .*--allow-code"),
    "a folder that is not there": ("path: base", "path: ./bse/", r"yaml:5: stages.sft.model.path: there is no folder"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_named_with_file_line_and_field(recipe: Path, case: str) -> None:
    old, new, message = REFUSED[case]
    assert old in CHAIN
    recipe.write_text(CHAIN.lstrip("\n").replace("name", "\nname", 1).replace(old, new, 1))
    with pytest.raises(InputError, match=message):
        run(recipe)


def test_every_fault_is_named_at_once(recipe: Path) -> None:
    recipe.write_text(CHAIN.replace("beta: 0.1", "betta: 0.1").replace("models:", "model:"))
    with pytest.raises(InputError) as caught:
        load(recipe)
    assert {line.split(":")[2].strip() for line in str(caught.value).splitlines()} >= {"stages.dpo.betta"}
    assert "stages.evaluate.model" in str(caught.value)


def test_a_hub_name_without_a_network_is_one_line(recipe: Path) -> None:
    recipe.write_text(CHAIN.replace("path: base", "path: nobody/nothing"))
    with pytest.raises(InputError, match=r"stages\.sft\.model\.path: 'nobody/nothing' is neither a folder") as caught:
        run(recipe)
    assert "\n" not in str(caught.value)


def test_an_override_of_an_unknown_stage_is_refused(recipe: Path) -> None:
    with pytest.raises(InputError, match=r"command line \(dop\.beta=0\.2\): 'dop'.*did you mean `dpo`"):
        load(recipe, "dop.beta=0.2")


def test_the_hub_is_asked_once_for_a_model_that_many_stages_name(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def model_info(name: str, timeout: float) -> SimpleNamespace:
        asked.append(name)
        return SimpleNamespace(sha="a" * 40)

    monkeypatch.setattr("huggingface_hub.model_info", model_info)
    recipe.write_text(CHAIN.replace("path: base", "path: team/several").replace('"@sft"}', "team/several}"))
    plan(load(recipe), Path("runs"))
    assert asked == ["team/several"]


def test_a_hub_model_enters_the_id_by_its_revision(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    refs = tmp_path / "hub" / "models--team--base" / "refs"
    refs.mkdir(parents=True)
    recipe.write_text(CHAIN.replace("path: base", "path: team/base"))
    ids = set[str]()
    for commit in ("a" * 40, "b" * 40, "b" * 40):
        (refs / "main").write_text(commit)
        ids.add(plan(load(recipe), Path("runs"))[0].id)
    assert len(ids) == 2
