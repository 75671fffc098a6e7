"""Compares models on held-out prompts: answers, scores, KL, win rates, perplexity. Knows no other stage.

It leaves results.json (rows of model, metric, value, low, high), samples.json, and every answer of every model with
its scores in answers/<model>.json, from which the table can be computed anew.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import chain, count
from pathlib import Path
from typing import Any, TypeVar

from accelerate import Accelerator

from alignkit.config import content_hash
from alignkit.data.load import load_data
from alignkit.environment.episodes import open_episodes
from alignkit.environment.seam import announced
from alignkit.evaluation.answers import Answer, Speaker, answer, open_format, open_speaker
from alignkit.evaluation.perplexity import perplexity
from alignkit.evaluation.statistics import Bootstrap, Estimate
from alignkit.evaluation.table import Table, references
from alignkit.evaluation.texts import KINDS, positions_of, text_sequences
from alignkit.lineage import finite
from alignkit.loop import make_accelerator
from alignkit.options.evaluate import EvaluateConfig
from alignkit.options.shared import DataOptions, RuntimeOptions
from alignkit.progress import peak_memory_bytes, progress
from alignkit.prompts import fitting
from alignkit.records import Prompt, Record
from alignkit.rewards import build_reward
from alignkit.runs import Run, atomic_write
from reward_models.scores import Reward

R = TypeVar("R", bound=Record)


def run(
    config: EvaluateConfig, runtime: RuntimeOptions, run: Run, rewards: Mapping[str, Reward] | None = None
) -> Path:
    """Compare the models; returns the folder of the results.

    `rewards` ("reward", "gold") replace the recipe's, for library use. Interrupted, it goes on with the next model.
    """
    accelerator = make_accelerator(runtime)
    folder = run.directory / "results"
    given = _read(config.data, Prompt, config, run)
    formats, told = [open_format(path, config) for path in config.models], config.environment
    for format in formats:
        open_episodes(told, format, runtime.allow_code)  # raises before any model is asked
    asked = announced(given, told, runtime.allow_code)
    prompts = fitting(asked, formats, config, runtime.token_budget, 0 if told is None else told.max_tokens)
    run.log(0, {"data/prompts": len(prompts), "data/skipped": len(given) - len(prompts)})
    references(prompts, config)  # raises, too
    measure = _Measure(config, runtime, accelerator, prompts, run, rewards)
    names = model_names(run.record.config.get("models", config.models))
    judge = next((name for name in ("gold", "reward") if name in measure.rewards), None)
    table = Table(config, prompts, measure.bootstrap, judge)
    answers: dict[str, list[Answer]] = {}
    rows: list[dict[str, Any]] = []
    started = time.perf_counter()
    with progress(run.directory.name, len(names), shown=run.is_main) as advance:
        for number, (name, path) in enumerate(zip(names, config.models, strict=True), 1):
            answers[name], texts = measure(path, folder / "answers" / f"{name}.json")
            rows += table.rows(name, answers[name], texts)
            run.log(number, {f"{name}/{row['metric']}": row["value"] for row in rows if row["model"] == name})
            advance(number, {})
    baseline, reference = names[config.baseline_index], names[config.reference_index]
    rows += table.win_rates(answers, baseline)
    rows.sort(key=lambda row: names.index(row["model"]))
    if run.is_main:
        results = {
            "models": names,
            "baseline": baseline,
            "reference": reference,
            "prompts": len(prompts),
            "samples": config.samples,
            "confidence": config.confidence,
            "win_rate_by": judge,
            "rows": rows,
        }
        _write(folder / "results.json", results)
        _write(folder / "samples.json", table.side_by_side(answers))
    seconds = time.perf_counter() - started
    several = [one for found in answers.values() for one in found]
    rates = {
        "examples_per_second": len(several) / seconds,
        "tokens_per_second": sum(len(one.ids) for one in several) / seconds,
    }
    metrics = {f"{row['model']}/{row['metric']}": row["value"] for row in rows}
    run.finish(metrics, rates, peak_memory_bytes(accelerator.device), folder)
    return folder


def model_names(models: Sequence[str]) -> list[str]:
    """Short names for the table: "@sft" is sft, a folder its last name (that before `model`), equal ones numbered."""
    names: list[str] = []
    for model in models:
        path = Path(model.removeprefix("@"))
        parts = [part for part in (path if path.name else path.resolve()).parts if part != "/"] or ["model"]
        name = parts[-2] if parts[-1] == "model" and len(parts) > 1 else parts[-1]
        numbered = (f"{name}-{number}" for number in count(2))
        names.append(next(one for one in chain([name], numbered) if one not in names))
    return names


class _Measure:
    """Measures one model after the other; what is the same for all of them is opened once."""

    def __init__(
        self,
        config: EvaluateConfig,
        runtime: RuntimeOptions,
        accelerator: Accelerator,
        prompts: Sequence[Prompt],
        run: Run,
        rewards: Mapping[str, Reward] | None,
    ) -> None:
        self.config, self.runtime, self.accelerator, self.prompts = config, runtime, accelerator, prompts
        self.is_main = run.is_main
        self.precision = "bf16" if accelerator.mixed_precision == "bf16" else "float32"
        self.bootstrap = Bootstrap(config.bootstrap, config.confidence, config.seed)
        self.texts = [] if config.texts is None else _read(config.texts, KINDS[config.texts_are], config, run)
        self.rewards = dict(self._build() if rewards is None else rewards)
        self.reference: Speaker | None = None

    def _build(self) -> dict[str, Reward]:
        sources = {"reward": self.config.reward, "gold": self.config.gold}
        return {
            name: build_reward(
                source,
                device=self.accelerator.device,
                precision=self.precision,
                token_budget=self.runtime.token_budget,
                allow_code=self.runtime.allow_code,
            )
            for name, source in sources.items()
            if source is not None
        }

    def __call__(self, path: str, kept: Path) -> tuple[list[Answer], dict[str, Estimate]]:
        """Answers to all prompts, and what was measured on the texts; kept in a file of the model's own."""
        key = content_hash([path, self.config.model_dump(mode="json")])
        known = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
        # No rank writes before all have looked.
        self.accelerator.wait_for_everyone()
        if known.get("key") != key:
            known = {"key": key, **self._measure(path)}
            if self.is_main:
                _write(kept, known, indent=None)
        answers = [Answer(**one) for one in known["answers"]]
        return answers, {name: Estimate(**value) for name, value in known["texts"].items()}

    def _measure(self, path: str) -> dict[str, Any]:
        reference_path = self.config.models[self.config.reference_index]
        if self.reference is None:
            self.reference = self._open(reference_path)
        speaker = self.reference if path == reference_path else self._open(path)
        answers = answer(
            speaker, self.reference, self.prompts, self.rewards, self.config, self.runtime, self.accelerator
        )
        return {"answers": [asdict(one) for one in answers], "texts": self._perplexity(speaker)}

    def _perplexity(self, speaker: Speaker) -> dict[str, Any]:
        if self.config.texts is None:
            return {}
        budget = self.runtime.token_budget
        positions = positions_of(speaker.policy.model.config)
        sequences, texts = text_sequences(speaker.format, self.texts, self.config, positions, budget)
        return asdict(perplexity(speaker.policy, sequences, texts, budget, self.bootstrap))

    def _open(self, path: str) -> Speaker:
        return open_speaker(path, self.config, self.accelerator.device, self.precision, self.runtime.allow_code)


def _read(options: DataOptions, kind: type[R], config: EvaluateConfig, run: Run) -> list[R]:
    records, _, sources = load_data(options, kind, config.seed)
    run.add_data(sources)
    return records


def _write(path: Path, value: Any, indent: int | None = 1) -> None:
    atomic_write(path, json.dumps(finite(value), indent=indent, ensure_ascii=False) + "\n")
