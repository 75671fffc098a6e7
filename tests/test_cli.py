"""The command line, as a user meets it: processes, what they print, and the codes they end with."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from alignkit.cli import main
from alignkit.display import print_table
from alignkit.objective import NonFiniteLoss
from alignkit.recipe import drive
from alignkit.recipe.child import run_prepared
from alignkit.runs import Run, read_metrics

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests" / "recipe"))

import small_chain  # noqa: E402


@dataclass
class Ended:
    """What a command left behind."""

    code: int
    output: str
    errors: str


def alignkit(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a folder that is not the checkout."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | variables
    command = [sys.executable, "-m", "alignkit", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe that has been run, with the first command's output beside it."""
    folder = tmp_path_factory.mktemp("chain")
    small_chain.prepare(folder)
    done = alignkit(folder, "run", "small.yaml")
    assert done.returncode == 0, done.stderr
    (folder / "output.txt").write_text(done.stdout)
    return folder


def test_run_leaves_runs_and_prints_the_results(folder: Path) -> None:
    output = (folder / "output.txt").read_text()
    assert "sft       starts" in output
    assert "win_rate" in output and "Win rates by reward against base" in output
    assert "Report: runs/small/report.html" in output
    assert "win_rate" in (folder / "runs/small/report.html").read_text()
    record = json.loads((folder / "runs/small/sft/run.json").read_text())
    assert (record["status"], record["stage"], record["config"]["model"]["path"]) == ("done", "sft", "base")
    assert record["data"][0]["rows"] == 24 and record["throughput"]["examples_per_second"] > 0
    assert (folder / "runs/small/sft/model/model.safetensors").is_file()
    evaluated = json.loads((folder / "runs/small/evaluate/run.json").read_text())
    assert evaluated["parents"] == {"sft": record["id"]}


def test_an_unchanged_recipe_re_runs_without_torch(folder: Path) -> None:
    script = """if True:
        import sys
        from alignkit.cli import main
        try:
            main(["run", "small.yaml"])
        finally:
            heavy = [name for name in ("torch", "transformers", "accelerate", "matplotlib") if name in sys.modules]
            print("heavy:", heavy, file=sys.stderr)
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "heavy: []" in done.stderr
    assert done.stdout.count("done before") == 2


def test_json_for_programs(folder: Path) -> None:
    again = json.loads(alignkit(folder, "run", "small.yaml", "--json").stdout)
    assert again["recipe"] == "small" and again["report"] == "runs/small/report.html"
    assert [stage["state"] for stage in again["stages"]] == ["done", "done"]
    shown = json.loads(alignkit(folder, "show", "small.yaml", "sft.seed=5", "--json").stdout)
    assert [(stage["name"], stage["state"]) for stage in shown] == [("sft", "new"), ("evaluate", "new")]
    runs = json.loads(alignkit(folder, "show", "--json").stdout)
    assert {run["stage"] for run in runs} == {"sft", "evaluate"}


def test_show_lists_runs_with_state_and_metrics(folder: Path) -> None:
    shown = alignkit(folder, "show", "small.yaml")
    assert shown.returncode == 0
    record = json.loads((folder / "runs/small/sft/run.json").read_text())
    (line,) = [line for line in shown.stdout.splitlines() if line.startswith("sft")]
    assert line.split()[1:3] == ["done", record["id"][:8]] and "nll" in line


def test_what_is_shown_is_never_read_as_markup(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["stage", "said [b]"], [["sft", 'pip install "alignkit[eval]" [/x] :warning:']])
    heading, row = (line.rstrip() for line in capsys.readouterr().out.splitlines())
    assert (heading, row) == ("stage   said [b]", 'sft     pip install "alignkit[eval]" [/x] :warning:')


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """The command inside this process, where torch is loaded already."""
    monkeypatch.chdir(folder)

    def command(*words: str) -> Ended:
        with pytest.raises(SystemExit) as ended:
            main(words)
        said = capsys.readouterr()
        return Ended(int(ended.value.code or 0), said.out, said.err)

    return command


def test_check_reads_data_and_tokens_and_writes_no_run(here: Callable[..., Ended]) -> None:
    checked = here("check", "small.yaml", "--runs", "elsewhere", "--json")
    assert checked.code == 0, checked.errors
    sft, evaluate = json.loads(checked.output)
    assert (sft["records"], sft["sequences"], evaluate["records"]) == (24, 24, 8)
    # One token a letter; an answer is "ab" one to four times and its end.
    assert sft["tokens"] == sum(len(f"say {n}?") + 2 * (n % 4 + 1) + 1 for n in range(24))
    assert not Path("elsewhere").exists()


def test_check_names_a_row_that_does_not_fit(here: Callable[..., Ended]) -> None:
    checked = here("check", "small.yaml", "sft.data.max_length=10")
    assert checked.code == 2
    assert "stages.sft" in checked.errors and "data.max_length is 10" in checked.errors
    assert here("check", "small.yaml", "sft.data.max_length=10", "sft.data.over_long=skip").code == 0


def test_chat_answers(here: Callable[..., Ended]) -> None:
    words = ("chat", "runs/small/sft", "--prompt", "say 3?", "--max-new-tokens", "5", "--temperature", "0", "--json")
    first, second = here(*words), here(*words)
    assert first.code == 0, first.errors
    assert first.output == second.output
    assert set(json.loads(first.output)) == {"response", "finished"}


def test_chat_goes_on_until_an_empty_line(here: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch) -> None:
    lines = iter(["say 1?", "say 2?", ""])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    said = here("chat", "runs/small/sft", "--max-new-tokens", "5", "--temperature", "0")
    assert said.code == 0 and len(said.output.splitlines()) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run", "small.yaml", "sft.train.lr=1"), "here it is `train.learning_rate`"),
        (("run", "absent.yaml"), "absent.yaml: cannot be read"),
        (("check", "small.yaml", "sft.model.path=nobody/nothing"), "'nobody/nothing' is neither a folder"),
        (("run", "small.yaml", "--only", "stf"), "did you mean `sft`"),
        (("show", "absent"), "absent: there is neither a recipe nor a folder"),
        (("chat", "runs/small/dpo"), "there is no model"),
        (("chat", "small.yaml"), "small.yaml: there is no model"),
        (("chat", "runs/small/sft", "--prompt", " "), "the message is empty"),
        (("run",), "Missing argument"),
    ],
)
def test_wrong_input_is_one_error_and_exit_code_2(folder: Path, words: tuple[str, ...], message: str) -> None:
    ended = alignkit(folder, *words)
    assert ended.returncode == 2 and message in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_stage_that_finds_the_input_wrong_ends_the_chain_with_code_2(folder: Path) -> None:
    (folder / "bad.jsonl").write_text('{"messages": [\n')
    ended = alignkit(folder, "run", "small.yaml", "sft.data.path=bad.jsonl", "name=bad")
    assert ended.returncode == 2
    assert "bad.jsonl" in ended.stderr and "Traceback" not in ended.stderr
    record = json.loads((folder / "runs/bad/sft/run.json").read_text())
    assert record["status"] == "failed" and "bad.jsonl" in record["error"]


def test_a_loss_that_is_not_finite_is_one_error(here: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch) -> None:
    def diverging(config: object, runtime: object, run: Run) -> Path:
        run.log(1, {"nll": 3.0})
        raise NonFiniteLoss("nll is nan at step 2.")

    monkeypatch.setattr("alignkit.stages.sft.run", diverging)
    monkeypatch.setattr(drive, "execute_child", lambda directory, runtime: run_prepared(directory))
    monkeypatch.delenv("ALIGNKIT_DRIVER", raising=False)
    ended = here("run", "small.yaml", "name=diverging", "--only", "sft")
    assert ended.code == 1 and "nll is nan at step 2." in ended.errors and "Traceback" not in ended.errors
    assert json.loads(Path("runs/diverging/sft/run.json").read_text())["status"] == "failed"
    assert read_metrics(Path("runs/diverging/sft")) == [{"step": 1, "nll": 3.0}]


def test_a_full_disk_is_one_error_that_says_how_to_go_on(
    here: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    def filling(config: object, runtime: object, run: Run) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("alignkit.stages.sft.run", filling)
    monkeypatch.setattr(drive, "execute_child", lambda directory, runtime: run_prepared(directory))
    ended = here("run", "small.yaml", "name=full", "--only", "sft")
    assert ended.code == 1 and "No space left on device: free some space" in ended.errors
    assert "Traceback" not in ended.errors
