"""A run's directory while its stage runs: record, metrics, checkpoints, trackers. It knows no stage, no model."""

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Self

from alignkit.config import Config, InputError
from alignkit.lineage import RunRecord, atomic_write, finite, read_record, sha256_file, sync, write_record
from alignkit.options.shared import RuntimeOptions
from alignkit.provenance import alignkit_commit, hardware, installed_versions, now

__all__ = [
    "Run",
    "RunRecord",
    "atomic_write",
    "checkpoint_step",
    "read_metrics",
    "read_record",
    "sha256_file",
    "write_record",
]


class Run:
    """One stage's directory while the stage runs. Only rank 0 writes; on other ranks writing methods do nothing."""

    def __init__(self, directory: Path, record: RunRecord, is_main: bool) -> None:
        self.directory = directory
        self.record = record
        self.is_main = is_main
        self._trackers: list[Any] | None = None

    @classmethod
    def open(
        cls,
        directory: Path,
        stage: str,
        config: Config,
        runtime: RuntimeOptions,
        id: str = "",
        parents: Mapping[str, str] | None = None,
    ) -> Self:
        """Start a run in `directory`, or go on with the one of equal id that stands there.

        Raises InputError where a run of another id stands there (`alignkit.recipe` moves those aside).
        """
        is_main = int(os.environ.get("RANK", "0")) == 0
        known = read_record(directory)
        if known is not None and known.id != id:
            raise InputError(f"{directory} holds another run (id {known.id[:8]}, not {id[:8]}); move it or delete it")
        values = config.model_dump(mode="json")
        seed = values.get("seed", 0)
        record = RunRecord(
            stage=stage,
            status="running",
            id=id,
            config=values,
            runtime=runtime.model_dump(mode="json"),
            parents=dict(parents or {}),
            seed=seed if isinstance(seed, int) else 0,
            versions=installed_versions(),
            git=alignkit_commit(),
            hardware=hardware(),
            started=now(),
        )
        run = cls(directory, record, is_main)
        if is_main:
            directory.mkdir(parents=True, exist_ok=True)
            for leftover in run.checkpoints_dir.glob("*.partial"):
                shutil.rmtree(leftover)
            if run.latest_checkpoint() is None:
                run.truncate(-1)
                shutil.rmtree(directory / "tensorboard", ignore_errors=True)
            write_record(directory, record)
        return run

    # ------------------------------------------------------------------------------------------------- artifact

    @property
    def model_dir(self) -> Path:
        """Where the stage leaves its artifact."""
        return self.directory / "model"

    def add_data(self, sources: Sequence[Mapping[str, Any]]) -> None:
        """Record what was read: a list of {path, sha256, rows}."""
        self._update(data=[*self.record.data, *(dict(source) for source in sources)])

    def finish(
        self,
        metrics: Mapping[str, Any],
        throughput: Mapping[str, float] | None = None,
        peak_memory: int | None = None,
        artifact: Path | None = None,
    ) -> None:
        """Mark the run done. `throughput` in 1/s, `peak_memory` in bytes; `artifact` a folder inside the run."""
        folder = "model" if artifact is None else artifact.relative_to(self.directory).as_posix()
        self._close()
        self._update(
            status="done",
            ended=now(),
            metrics=dict(metrics),
            throughput=dict(throughput or {}),
            peak_memory_bytes=peak_memory,
            artifact=folder,
            error=None,
        )

    def fail(self, error: BaseException | str) -> None:
        """Mark the run failed, with the reason. What was written before stays, and the next start goes on from it."""
        self._close()
        reason = str(error) or type(error).__name__
        self._update(status="failed", ended=now(), error=reason, input_error=isinstance(error, InputError))

    def _update(self, **values: Any) -> None:
        self.record = self.record.model_copy(update=values)
        if self.is_main:
            write_record(self.directory, self.record)

    # -------------------------------------------------------------------------------------------------- metrics

    @property
    def metrics_path(self) -> Path:
        """One JSON object a line: the step, and numbers by name."""
        return self.directory / "metrics.jsonl"

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one line to metrics.jsonl and pass it to the trackers. Numbers that are not finite become null."""
        if not self.is_main:
            return
        values = {name: float(value) for name, value in metrics.items()}
        line = json.dumps({"step": step, **finite(values)}) + "\n"
        with self.metrics_path.open("a", encoding="utf-8") as file:
            file.write(line)
        if self._trackers is None:
            self._trackers = list(self._start_trackers())
        for tracker in self._trackers:
            tracker.log(values, step=step)

    def truncate(self, step: int) -> None:
        """Drop the lines after `step`, and a last line that a kill cut short: what a resumed run does first."""
        if not self.is_main or not self.metrics_path.exists():
            return
        kept = [json.dumps(line) + "\n" for line in read_metrics(self.directory) if line["step"] <= step]
        # What a stage says before its first step, it says again when it is resumed.
        atomic_write(self.metrics_path, "".join(dict.fromkeys(kept)))

    def _start_trackers(self) -> Iterator[Any]:
        """accelerate's trackers by name. Not before the first line: they need the process group the stage sets up."""
        names = self.record.runtime["trackers"]
        classes = import_module("accelerate.tracking").LOGGER_TYPE_TO_CLASS if names else {}
        for name in names:
            if name not in classes:
                raise InputError(f"runtime.trackers: {name!r} is not one of {', '.join(sorted(classes))}")
            options: dict[str, Any] = (
                {"logging_dir": str(self.directory)} if classes[name].requires_logging_directory else {}
            )
            if name == "tensorboard" and (last := self.latest_checkpoint()) is not None:
                options["purge_step"] = checkpoint_step(last) + 1  # what comes after it is said again
            try:
                tracker = classes[name](
                    name if options else f"{self.directory.parent.name}-{self.directory.name}", **options
                )
                tracker.start()
            except ImportError as error:
                raise InputError(f"runtime.trackers: {name} is not installed ({error}); install or drop it") from error
            yield tracker

    def _close(self) -> None:
        for tracker in self._trackers or []:
            tracker.finish()
        self._trackers = None

    # ---------------------------------------------------------------------------------------------- checkpoints

    @property
    def checkpoints_dir(self) -> Path:
        """Where they lie: step-N, or checkpoint-N as transformers' trainers write them."""
        return self.directory / "checkpoints"

    def checkpoints(self) -> list[Path]:
        """The whole checkpoints, oldest first. A trainer of transformers writes its state last."""
        theirs = [path.parent for path in self.checkpoints_dir.glob("checkpoint-*/trainer_state.json")]
        found = [*self.checkpoints_dir.glob("step-*"), *theirs]
        whole = [path for path in found if re.fullmatch(r"(step|checkpoint)-\d+", path.name)]
        return sorted(whole, key=checkpoint_step)

    def latest_checkpoint(self) -> Path | None:
        """The newest whole checkpoint, or None."""
        found = self.checkpoints()
        return found[-1] if found else None

    @contextmanager
    def checkpoint_dir(self, step: int, keep: int = 1) -> Iterator[Path]:
        """A folder to write a checkpoint into: `with run.checkpoint_dir(step) as folder`. Rank 0 only.

        It takes its name (checkpoints/step-N) when the block has ended without an error, and only then the oldest go,
        so that at any instant, and on a full disk, the last whole checkpoint stands.
        """
        assert self.is_main, "only rank 0 writes checkpoints"
        partial, final = self.checkpoints_dir / f"step-{step}.partial", self.checkpoints_dir / f"step-{step}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            yield partial
            for path in [*partial.rglob("*"), partial]:
                sync(path)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        if final.exists():
            shutil.rmtree(final)
        partial.rename(final)
        sync(self.checkpoints_dir)
        for old in self.checkpoints()[:-keep]:
            shutil.rmtree(old)


def checkpoint_step(path: Path) -> int:
    """The optimizer step of a checkpoint's folder."""
    return int(path.name.rpartition("-")[2])


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; a last line that was cut short is left out."""
    path = directory / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    # What follows the last newline was never finished.
    return [json.loads(line) for line in lines[:-1] if line]
